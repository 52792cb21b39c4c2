"""Small English text, made up, and a tokenizer trained on it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from janus_pt.data_prep.train_tokenizer import train
from janus_pt.tokenizer import Tokenizer


def sentence(number: int) -> str:
    return (
        f"Sentence {number} speaks of {'many ' * (number % 7)}things, {number * 37 % 101} in all."
    )


def document(number: int, sentences: int = 40) -> str:
    return (
        " ".join(sentence(number * 31 + i) for i in range(sentences))
        + f"\nThe end of document {number}."
    )


@cache
def tokenizer() -> Tokenizer:
    return train([sentence(i) for i in range(2000)], 330)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def corpus_files(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus, but for the page whose title is the folder's name."""
    return {name: content for name, content in contents(folder).items() if name != "report.html"}
