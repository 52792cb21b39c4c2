"""The page of a comparison: all that `claims.json` says, what differs is marked, and the same page every time."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from janus_pt.claims.page import marked, render


def content() -> dict[str, Any]:
    """A small comparison of two systems, as `claims.json` has it."""
    row = {
        "system": "ar",
        "way": "AR greedy",
        "options": {"mode": "ar"},
        "values": {"exact_match": [76.5, 77.5], "per": [5.25, 5.75]},
        "interval": [1.125, 1.375],
        "against": "",
        "difference": [],
        "p_value": [],
        "passes": 8.2,
        "speeds": {"1": 101.25},
        "as_greedy": None,
    }
    other = {
        **row,
        "system": "janus",
        "against": "ar, AR greedy",
        "difference": [1.5, 2.5],
        "p_value": [0.004, 0.031],
        "speeds": {},
    }
    curve = {
        "cell": "ar-seed1",
        "system": "ar",
        "updates": [500, 1000],
        "minutes": [1.0, 2.1],
        "values": {"exact_match": [40.0, 70.0], "loss/ar": [1.0, 0.5]},
    }
    training = {"cell": "ar-seed1", "changes": ["optimizer.lr=1"], "updates": 1000}
    return {
        "title": "g2p: ar, janus",
        "setting": "5,000 test words.",
        "metric": "exact_match",
        "explanation": "Means over seeds.",
        "sizes": ["1"],
        "rows": [row, other],
        "trainings": [{**training, "tokens_per_s": 2000.4}],
        "curves": [curve],
        "samples": [
            {
                "source": "<route>",
                "references": ["R UW T", "R AW T"],
                "outputs": {"ar, AR greedy": "R AW T S"},
            }
        ],
        "signatures": {"exact_match": "equal up to white space"},
        "machine": "a machine",
    }


def test_the_page_is_a_function_of_the_file() -> None:
    text = json.dumps(content())
    assert render(json.loads(text)) == render(json.loads(text))


def test_every_number_is_there() -> None:
    page = render(content())
    cells = re.findall(r"<td[^>]*>([^<]*)", page)
    shown = [html.unescape(cell).strip() for cell in cells]
    # Means over seeds of both metrics and of the interval; the difference, and the larger p-value.
    for number in ("77.00", "5.50", "1.25", "+2.00", "0.031", "8.2", "101.2", "2000"):
        assert number in shown, number
    for text in ("ar, AR greedy", "optimizer.lr=1", "1000", "<route>"):
        assert text in shown, text
    assert "<route>" not in page, "texts are escaped"
    # A picture for the metric and one for the loss that there is.
    assert page.count("<svg") == 2 and "validation exact_match" in page


def test_what_differs_from_the_nearest_reference_is_marked() -> None:
    assert marked("R AW T S", ["R UW T", "R AW T"]) == [("R AW T", False), ("S", True)]
    assert marked("a c", ["a b c"]) == [("a", False), ("∅", True), ("c", False)]
    assert marked("a b", ["a b"]) == [("a b", False)]
    assert re.search(r"R AW T\s+<mark>S</mark>", render(content()))
