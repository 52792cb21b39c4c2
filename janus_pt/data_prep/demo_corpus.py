"""Make the demo's text without a download, from the documentation that is installed with Python and its packages.

    janus-pt prep demo-corpus --output demo/text

Writes `text.jsonl` and `text.valid.jsonl` (a document a line: Python's manual topics and docstrings) and
`pairs.{train,valid,test}.{source,target}` (an example a line: the beginning of a docstring's body, and its summary
line). No source and no target occurs twice, and no document of a valid or test pair is in `text*.jsonl`. The output
depends on the installed packages alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

from tqdm import tqdm

from janus_pt.data_prep.docstrings import documents_of, paragraphs, source_files
from janus_pt.utils.errors import UserError
from janus_pt.utils.processes import available_cores, map_in_order, worker_pool

SOURCE_WORDS = range(12, 25)
"""Words of a source: a shorter body makes no pair, a longer one is cut."""
TARGET_WORDS = range(3, 21)
"""Words of a target: other summaries make no pair."""
HELD_OUT = 300
"""Pairs of the valid set, and as many of the test set."""
VALID_SHARE = 300
"""One document in so many is for validation."""
FILES_AT_ONCE = 16
"""Python files a worker process reads before it reports."""
_PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,.'()/-]*")


class Document(NamedTuple):
    """A cleaned docstring."""

    text: str
    source: str
    """The beginning of its body."""
    target: str
    """Its summary."""


def read_documents(max_characters: int, workers: int) -> Iterator[Document]:
    """Yield documents, each text once, until `max_characters` are reached or there are no more."""
    seen = set()
    characters = 0
    for lines in _cleaned(workers):
        text = "\n".join(lines)
        if text in seen:
            continue
        seen.add(text)
        characters += len(text)
        if characters > max_characters:
            return
        words = " ".join(lines[1:]).split()
        source = " ".join(words[: SOURCE_WORDS[-1]])
        yield Document(text, source, target=lines[0])


def select_pairs(documents: Iterable[Document]) -> list[Document]:
    """The documents that make a good fine-tuning pair, without equal sources or targets, in the order of a hash."""
    sources: set[str] = set()
    targets: set[str] = set()
    pairs = []
    for document in documents:
        source, target = _keys(document)
        if source not in sources and target not in targets and _is_pair(document):
            pairs.append(document)
            sources.add(source)
            targets.add(target)
    return sorted(pairs, key=lambda pair: _digest(pair.source))


def split_pairs(pairs: Sequence[Document]) -> dict[str, Sequence[Document]]:
    """`test`, `valid` and `train`, consecutive parts: the pairs come in the order of a hash."""
    return {
        "test": pairs[:HELD_OUT],
        "valid": pairs[HELD_OUT : 2 * HELD_OUT],
        "train": pairs[2 * HELD_OUT :],
    }


def without(documents: Iterable[Document], held_out: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents that share neither source nor target with one of `held_out`."""
    keys = {key for pair in held_out for key in _keys(pair)}
    return (document for document in documents if keys.isdisjoint(_keys(document)))


def write_corpus(documents: Sequence[Document], folder: Path) -> dict[str, int]:
    """Write all files into a folder; returns the number of lines of each."""
    splits = split_pairs(select_pairs(documents))
    files: dict[str, list[str]] = {"text.jsonl": [], "text.valid.jsonl": []}
    # Pretraining must not see the text on which the fine-tuned model is tested.
    for document in without(documents, [*splits["test"], *splits["valid"]]):
        # By a hash, so that a document stays in its file when others come or go.
        name = "text.jsonl" if _digest(document.text) % VALID_SHARE else "text.valid.jsonl"
        files[name].append(json.dumps({"text": document.text}, ensure_ascii=False))
    for split, pairs in splits.items():
        files[f"pairs.{split}.source"] = [pair.source for pair in pairs]
        files[f"pairs.{split}.target"] = [pair.target for pair in pairs]
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        content = "".join(line + "\n" for line in lines)
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    return {name: len(lines) for name, lines in files.items()}


def _cleaned(workers: int) -> Iterator[list[str]]:
    """Yield the paragraphs of each manual topic, then of each docstring."""
    for name in sorted(topics):
        lines = paragraphs(topics[name])
        if lines:
            yield lines
    files = [path for _, path in source_files()]
    batches = [
        files[start : start + FILES_AT_ONCE] for start in range(0, len(files), FILES_AT_ONCE)
    ]
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with (
        worker_pool(workers) as pool,
        tqdm(total=len(files), unit="file", mininterval=interval) as bar,
    ):
        for batch, documents in map_in_order(pool, documents_of, batches, ahead=4 * workers):
            bar.update(len(batch))
            yield from documents


def _keys(document: Document) -> tuple[str, str]:
    # Lower case: "Return the size." and "return the size." are one sentence.
    return document.source.lower(), document.target.lower()


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _is_pair(document: Document) -> bool:
    """Whether the summary is a plain English sentence, and neither side too short or too long."""
    return (
        len(document.source.split()) in SOURCE_WORDS
        and len(document.target.split()) in TARGET_WORDS
        and _PLAIN.fullmatch(document.target) is not None
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep demo-corpus`."""
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="gets the files"
    )
    parser.add_argument(
        "--max-megabytes", type=float, default=16.0, help="of text (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the corpus and report its size."""
    if args.max_megabytes <= 0 or args.workers < 1:
        raise UserError("--max-megabytes must be above 0 and --workers at least 1")
    max_characters = int(args.max_megabytes * 1e6)
    documents = list(read_documents(max_characters, args.workers))
    lines = write_corpus(documents, args.output)
    size = (args.output / "text.jsonl").stat().st_size / 1e6
    counts = ", ".join(f"{name} {count:,}" for name, count in lines.items())
    print(f"{args.output}: {size:.1f} MB of text; {counts}")
