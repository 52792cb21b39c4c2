"""Make the demo's pairs: dates, times and amounts as they are written, and as they are spoken.

    janus-pt prep spoken-forms --output spoken

    Tue 5 Mar 2024, 17:45, $24.50
    tuesday the fifth of march twenty twenty four seventeen forty five twenty four dollars fifty cents

This is text normalisation as speech synthesis needs it (Sproat and Jaitly 2016), with one right output for each source,
which anybody can check. Writes `{train,dev,test}.src` and `.tgt` of the task `pairs`. No source occurs twice; the pairs
are drawn from a fixed seed, and spelt by num2words (pip install 'janus_pt[demo]').
"""

from __future__ import annotations

import argparse
import calendar
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

from janus_pt.utils.errors import UserError
from janus_pt.utils.extras import require
from janus_pt.utils.files import make_folder, write_atomically

SEED = 1
YEARS = range(1900, 2100)
SPLITS = {"test": 500, "dev": 500}
"""Pairs of these splits; training gets the others."""


def spoken_date(year: int, month: int, day: int) -> str:
    """As in "tuesday the fifth of march twenty twenty four"."""
    weekday, name = (
        calendar.day_name[calendar.weekday(year, month, day)],
        calendar.month_name[month],
    )
    return f"{weekday} the {spelt(day, 'ordinal')} of {name} {spelt(year, 'year')}".lower()


def spoken_time(hour: int, minute: int) -> str:
    """As in "seventeen forty five", "nine oh five", "twelve o'clock"."""
    if minute == 0:
        return f"{spelt(hour)} o'clock"
    zero = "oh " if minute < 10 else ""
    return f"{spelt(hour)} {zero}{spelt(minute)}"


def spoken_amount(dollars: int, cents: int) -> str:
    """As in "twenty four dollars fifty cents"."""
    return f"{spelt(dollars)} dollars {spelt(cents)} cents"


@cache
def spelt(number: int, kind: str = "cardinal") -> str:
    """A number in words, without hyphens and commas; `kind` is one of num2words."""
    num2words = require("num2words", "demo").num2words
    words: str = num2words(number, to=kind)
    return words.replace("-", " ").replace(",", "")


def draw_pair(rng: random.Random) -> tuple[str, str]:
    """A source and its target."""
    year = rng.choice(YEARS)
    month = rng.randint(1, 12)
    _, days = calendar.monthrange(year, month)
    day = rng.randint(1, days)
    hour, minute = rng.randint(0, 23), rng.randint(0, 59)
    # From 2 on: one dollar and one cent have no plural.
    dollars, cents = rng.randint(2, 99), rng.randint(2, 99)
    weekday = calendar.day_abbr[calendar.weekday(year, month, day)]
    date = f"{weekday} {day} {calendar.month_abbr[month]} {year}"
    written = (date, f"{hour}:{minute:02}", f"${dollars}.{cents:02}")
    spoken = (
        spoken_date(year, month, day),
        spoken_time(hour, minute),
        spoken_amount(dollars, cents),
    )
    return ", ".join(written), " ".join(spoken)


def draw_pairs(count: int, draw: Callable[[random.Random], tuple[str, str]]) -> dict[str, str]:
    """`count` pairs with different sources, as source -> target; the same every time."""
    rng = random.Random(SEED)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        source, target = draw(rng)
        pairs[source] = target
    return pairs


def write_pairs(count: int, folder: Path) -> None:
    """Write the files of all splits; `count` pairs are for training."""
    make_folder(folder)
    pairs = list(draw_pairs(count + sum(SPLITS.values()), draw_pair).items())
    start = 0
    # The test set first: it stays when more pairs for training are asked for.
    for split, size in {**SPLITS, "train": count}.items():
        part = pairs[start : start + size]
        sources = "".join(f"{source}\n" for source, _ in part)
        targets = "".join(f"{target}\n" for _, target in part)
        write_atomically(folder / f"{split}.src", sources)
        write_atomically(folder / f"{split}.tgt", targets)
        start += size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep spoken-forms`."""
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="gets the files"
    )
    parser.add_argument(
        "--pairs", type=int, default=50_000, help="for training (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the pairs."""
    if args.pairs < 1:
        raise UserError(f"--pairs must be at least 1, not {args.pairs}")
    write_pairs(args.pairs, args.output)
    sizes = ", ".join(
        f"{split} {size:,}" for split, size in {"train": args.pairs, **SPLITS}.items()
    )
    print(f"{args.output}: pairs of {sizes}")
