"""The demo's corpus: clean English, pairs nobody has seen before the test, the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from janus_pt.data_prep import demo_corpus
from janus_pt.data_prep.demo_corpus import (
    Document,
    read_documents,
    select_pairs,
    without,
    write_corpus,
)
from janus_pt.data_prep.docstrings import documents_of, paragraphs, source_files
from tests.support.runs import run_script

DOCSTRING = """Return the :class:`~shop.Basket` with *all* ``items``
of a customer.

The basket is found by :func:`find`
and locked::

    basket = find(customer)

    lock(basket)

.. versionadded:: 3.2

Parameters
----------
customer : str
    Name of the customer.

:param strict: raise an error.

>>> basket("Ann")
Basket()

Examples
--------
A basket is bought like this, with an example.
"""

SUBJECTS = [
    "basket",
    "garden",
    "window",
    "letter",
    "engine",
    "bridge",
    "candle",
    "mirror",
    "ladder",
    "pocket",
    "violin",
]
PLACES = ["kitchen", "harbour", "station", "library", "village", "theatre", "factory", "cottage"]
BODIES = [
    f"The {subject} stands in the {place} where everybody can look at it, and number {i} was the right one to be shown."
    for i, (subject, place) in enumerate(
        (subject, place) for subject in SUBJECTS for place in PLACES
    )
]
TARGETS = [f"Show the {subject} of the {place}." for subject in SUBJECTS for place in PLACES]


def pair(source: str, target: str) -> Document:
    return Document(f"{target}\n{source}", source, target)


PAIRS = [pair(body, target) for body, target in zip(BODIES, TARGETS, strict=True)]


def test_a_docstring_becomes_prose() -> None:
    assert paragraphs(DOCSTRING) == [
        "Return the shop.Basket with all items of a customer.",
        "The basket is found by find and locked:",
        "Parameters: customer : str Name of the customer.",
        "strict: raise an error.",
    ]


@pytest.mark.parametrize(
    "text", ["1 + 1 == 2 and {3} != [4] ** (5)", ">>> only(a, doctest)", "", ".. note:: x"]
)
def test_what_is_not_english_is_left_out(text: str) -> None:
    assert paragraphs(text) == []


def test_docstrings_of_modules_classes_functions_and_methods(tmp_path: Path) -> None:
    said = [
        f"The {name} says what it is, in a sentence of enough words. " * 4
        for name in ("module", "class", "method")
    ]
    module = '"""{}"""\nclass A:\n    """{}"""\n    async def f(self):\n        """{}"""\n'.format(
        *said
    )
    (tmp_path / "good.py").write_text(module)
    (tmp_path / "broken.py").write_text(f'"""{said[0]}"""\ndef (:\n')
    (tmp_path / "code.py").write_text(f'"""{said[0]}"""\n' + "x = 1\n" * 1000)
    files = [tmp_path / name for name in ("broken.py", "good.py", "code.py", "missing.py")]
    assert documents_of(files) == [[text.strip()] for text in said]


def test_files_come_in_a_fixed_mixed_order() -> None:
    names = [name for name, _ in source_files()]
    assert names == [name for name, _ in source_files()]
    assert len(names) == len(set(names)) > 500
    assert names != sorted(names)
    assert not any("/tests/" in name for name in names)


def test_no_two_pairs_share_a_side() -> None:
    same_source = pair(BODIES[0].upper(), "Show the basket or the kitchen.")
    same_target = pair(BODIES[1] + " And more.", TARGETS[0].upper().capitalize())
    pairs = select_pairs([*PAIRS, same_source, same_target, *PAIRS])
    assert sorted(pairs) == sorted(PAIRS)
    assert pairs == select_pairs(PAIRS[::-1])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("Too short a body, basket.", "Show the basket."),
        (BODIES[0], "Basket."),
        (BODIES[0], "Show the basket" + " and the kitchen" * 7),
        (BODIES[0], "show the basket {of} the kitchen."),
    ],
)
def test_unfit_pairs_are_left_out(source: str, target: str) -> None:
    assert select_pairs([pair(source, target)]) == []


def test_splits_share_nothing_and_the_text_knows_no_held_out_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_corpus, "HELD_OUT", 20)
    monkeypatch.setattr(demo_corpus, "VALID_SHARE", 5)
    twins = [
        Document(f"Another. {p.source}", p.source, f"Another target {i}")
        for i, p in enumerate(PAIRS)
    ]
    counts = write_corpus([*PAIRS, *twins], tmp_path)
    splits = {
        split: set(
            zip(
                (tmp_path / f"pairs.{split}.source").read_text().splitlines(),
                (tmp_path / f"pairs.{split}.target").read_text().splitlines(),
                strict=True,
            )
        )
        for split in ("train", "valid", "test")
    }
    assert {split: len(pairs) for split, pairs in splits.items()} == {
        "train": 48,
        "valid": 20,
        "test": 20,
    }
    for side in (0, 1):
        held_out = {p[side] for p in splits["valid"] | splits["test"]}
        assert len(held_out) == 40
        assert held_out.isdisjoint(p[side] for p in splits["train"])
    texts = [
        json.loads(line)["text"]
        for name in ("text.jsonl", "text.valid.jsonl")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert len(texts) == counts["text.jsonl"] + counts["text.valid.jsonl"] == 2 * 48
    assert counts["text.valid.jsonl"] > 0
    assert not any(
        source in text for source, _ in splits["valid"] | splits["test"] for text in texts
    )


def test_without_looks_at_both_sides() -> None:
    others = [pair(BODIES[1], TARGETS[2]), pair(BODIES[3], TARGETS[0]), PAIRS[5]]
    assert list(without(others, PAIRS[:2])) == [PAIRS[5]]


def test_real_documents_are_the_same_for_any_workers() -> None:
    one = list(read_documents(700_000, workers=1))
    assert one == list(read_documents(700_000, workers=2))
    assert 650_000 < sum(len(document.text) for document in one) <= 700_000
    assert len({document.text for document in one}) == len(one)


@pytest.mark.exhaustive
def test_the_whole_corpus_is_large_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_script(monkeypatch, "data_prep/demo_corpus.py", "--output", tmp_path) == 0
    assert (tmp_path / "text.jsonl").stat().st_size > 5e6
    lines = {
        path.name: path.read_text(encoding="utf-8").count("\n") for path in tmp_path.glob("pairs.*")
    }
    assert lines["pairs.train.source"] == lines["pairs.train.target"] >= 8000
    assert {
        lines[f"pairs.{split}.{side}"]
        for split in ("valid", "test")
        for side in ("source", "target")
    } == {300}
