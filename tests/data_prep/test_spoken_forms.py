"""The demo's pairs: what is written and what is spoken say the same, and no source is in two splits."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from janus_pt.data_prep.spoken_forms import spoken_amount, spoken_date, spoken_time, write_pairs
from janus_pt.tasks.reading import read_split
from janus_pt.tasks.table import find_task

pytest.importorskip("num2words")

SMALL_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen
    fourteen fifteen sixteen seventeen eighteen nineteen"""
UNITS = SMALL_NUMBERS.split()
LARGE_NUMBERS = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = LARGE_NUMBERS.split()
WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


def number(words: list[str]) -> int:
    """The number below a hundred that words say."""
    return sum(
        UNITS.index(word) if word in UNITS else 10 * (2 + TENS.index(word)) for word in words
    )


@pytest.mark.parametrize(
    ("spoken", "words"),
    [
        (spoken_date(2024, 3, 5), "tuesday the fifth of march twenty twenty four"),
        (spoken_date(1905, 12, 31), "sunday the thirty first of december nineteen oh five"),
        (spoken_date(2000, 2, 1), "tuesday the first of february two thousand"),
        (spoken_time(17, 45), "seventeen forty five"),
        (spoken_time(9, 5), "nine oh five"),
        (spoken_time(12, 0), "twelve o'clock"),
        (spoken_amount(24, 50), "twenty four dollars fifty cents"),
    ],
)
def test_what_is_said(spoken: str, words: str) -> None:
    assert spoken == words


def test_sources_and_targets_say_the_same(tmp_path: Path) -> None:
    write_pairs(300, tmp_path)
    task = find_task("pairs")
    splits = {split: read_split(task, tmp_path, split) for split in ("train", "dev", "test")}
    sources = [source for part in splits.values() for source in part.sources]
    assert len(set(sources)) == len(sources) == 1300
    for source, target in zip(splits["train"].sources, splits["train"].targets, strict=True):
        date, time, amount = source.split(", ")
        # Python reads what is written, the weekday too, and says it by itself.
        day = datetime.datetime.strptime(date, "%a %d %b %Y")
        weekday, rest = target.split(" the ")
        assert weekday == day.strftime("%A").lower() == WEEKDAYS[day.weekday()]
        assert f" of {day.strftime('%B').lower()} " in rest
        assert re.fullmatch(r"\d\d?:\d\d", time)
        before_dollars, cents = rest.split(" dollars ")
        dollars, _, parts = amount.removeprefix("$").partition(".")
        assert number(cents.removesuffix(" cents").split()) == int(parts)
        # The words of the amount are the last ones that say it.
        spelt = before_dollars.split()
        assert any(number(spelt[-count:]) == int(dollars) for count in (1, 2))


def test_the_test_set_does_not_depend_on_the_pairs_for_training(tmp_path: Path) -> None:
    for count in (10, 20):
        write_pairs(count, tmp_path / str(count))
    test_sets = [(tmp_path / str(count) / "test.src").read_text() for count in (10, 20)]
    assert test_sets[0] == test_sets[1]
