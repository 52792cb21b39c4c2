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


def number(words: list[str]) -> int:
    """The number that words below a million say."""
    total = part = 0
    for word in words:
        if word in UNITS:
            part += UNITS.index(word)
        elif word in TENS:
            part += 10 * (2 + TENS.index(word))
        elif word == "hundred":
            part *= 100
        elif word == "thousand":
            total, part = 1000 * part, 0
        else:
            assert word == "and", word
    return total + part


@pytest.mark.parametrize(
    ("spoken", "words"),
    [
        (spoken_date(2024, 3, 5), "the fifth of march twenty twenty four"),
        (spoken_date(1905, 12, 31), "the thirty first of december nineteen oh five"),
        (spoken_date(2000, 2, 1), "the first of february two thousand"),
        (spoken_time(17, 45), "seventeen forty five"),
        (spoken_time(9, 5), "nine oh five"),
        (spoken_time(12, 0), "twelve o'clock"),
        (spoken_amount(1204, 50), "one thousand two hundred and four dollars fifty cents"),
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
        day = datetime.datetime.strptime(date, "%d %b %Y")
        assert f" of {day.strftime('%B').lower()} " in target
        assert re.fullmatch(r"\d\d?:\d\d", time)
        before_dollars, cents = target.split(" dollars ")
        dollars, _, parts = amount.removeprefix("$").replace(",", "").partition(".")
        assert number(cents.removesuffix(" cents").split()) == int(parts)
        spelt = before_dollars.split()
        # The words of the amount are the last ones that say it.
        assert any(
            all(word in [*UNITS, *TENS, "hundred", "thousand", "and"] for word in spelt[start:])
            and number(spelt[start:]) == int(dollars)
            for start in range(len(spelt))
        )


def test_the_test_set_does_not_depend_on_the_pairs_for_training(tmp_path: Path) -> None:
    for count in (10, 20):
        write_pairs(count, tmp_path / str(count))
    test_sets = [(tmp_path / str(count) / "test.src").read_text() for count in (10, 20)]
    assert test_sets[0] == test_sets[1]
