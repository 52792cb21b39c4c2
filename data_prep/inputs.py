"""Input files as a stream of work items: documents of a monolingual corpus, or the line pairs of a parallel one.

A `.jsonl` file has a document a line; in any other text file a blank line ends a document. Which records an item
holds depends on the input alone, never on the number of processes, so an item's number names a place in the input.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from typing import Literal, NamedTuple

from data_prep.blocks import PIECE_CHARACTERS, cut_pieces
from data_prep.files import BadLine, TextFile, format_suffix
from janus_pt.utils.errors import UserError

ITEM_CHARACTERS = 2**18
"""An item is closed when it holds this much."""
RECORD_COST = 64
"""Characters a record counts besides its text, so that empty ones and bad lines fill an item too."""

OnError = Literal["stop", "skip"]


class Pair(NamedTuple):
    """A line of a parallel corpus."""

    file: str
    line: int
    source: str
    target: str


class Item(NamedTuple):
    """Work for one process: texts, or pairs; the bad lines met on the way; the stored input bytes taken so far."""

    texts: list[str]
    pairs: list[Pair]
    bad: list[BadLine]
    position: int


def read_items(inputs: Sequence[tuple[str, ...]], field: str, on_error: OnError) -> Iterator[Item]:
    """Yield the items of the inputs: (file,) each of a monolingual corpus, (source, target) of a parallel one.

    Raises:
        UserError: a file cannot be read, or holds a bad line and `on_error` is `stop`.
    """
    item = Item([], [], [], 0)
    size = position = 0
    for paths in inputs:
        with ExitStack() as stack:
            files = [stack.enter_context(TextFile(path)) for path in paths]
            for record in _pairs(*files) if len(files) == 2 else documents(files[0], field):
                size += RECORD_COST + _add(item, record, on_error)
                if size >= ITEM_CHARACTERS:
                    yield item._replace(position=position + sum(file.position() for file in files))
                    item, size = Item([], [], [], 0), 0
            position += sum(file.position() for file in files)
    if size:
        yield item._replace(position=position)


def read_texts(paths: Iterable[str], field: str) -> Iterator[str]:
    """Yield every document of the files, long ones in pieces. `UserError` at the first bad line."""
    for path in paths:
        with TextFile(path) as file:
            for record in documents(file, field):
                if isinstance(record, BadLine):
                    raise UserError(str(record))
                yield record


def documents(file: TextFile, field: str) -> Iterator[str | BadLine]:
    """Yield a file's documents, those longer than `PIECE_CHARACTERS` in pieces; joined, the pieces are the document."""
    return (
        _json_documents(file, field)
        if format_suffix(file.path) == ".jsonl"
        else _plain_documents(file)
    )


def _add(item: Item, record: str | Pair | BadLine, on_error: OnError) -> int:
    """Put a record in its list; return its characters."""
    if isinstance(record, str):
        item.texts.append(record)
        return len(record)
    if isinstance(record, Pair):
        item.pairs.append(record)
        return len(record.source) + len(record.target)
    if on_error == "stop":
        raise UserError(f"{record} (mend it, or leave bad lines out with --on-error skip)")
    item.bad.append(record)
    return 0


def _plain_documents(file: TextFile) -> Iterator[str | BadLine]:
    lines: list[str] = []
    size = 0
    for _, line in file:
        if isinstance(line, BadLine):
            yield line
        elif line.strip():
            lines.append(line)
            size += len(line) + 1
            if size > 2 * PIECE_CHARACTERS:
                *whole, rest = cut_pieces("\n".join(lines))
                yield from whole
                # The line break after the last line is part of the document.
                lines, size = [rest], len(rest) + 1
        else:
            yield from cut_pieces("\n".join(lines))
            lines, size = [], 0
    yield from cut_pieces("\n".join(lines))


def _json_documents(file: TextFile, field: str) -> Iterator[str | BadLine]:
    for number, line in file:
        if isinstance(line, BadLine):
            yield line
        elif line.strip():
            try:
                text = _json_text(line, field)
            except ValueError as error:
                yield BadLine(file.path, number, str(error))
            else:
                yield from cut_pieces(text)


def _json_text(line: str, field: str) -> str:
    """The field's text. `ValueError` with the reason if the line has none."""
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("broken JSON: nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    if field not in document:
        raise ValueError(f'no field "{field}" (it has: {", ".join(list(document)[:8]) or "none"})')
    text = document[field]
    if not isinstance(text, str):
        raise ValueError(f'field "{field}" is not a string but {type(text).__name__}')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f'field "{field}" is not valid Unicode: it has half of a surrogate pair'
        ) from None
    return text


def _pairs(source: TextFile, target: TextFile) -> Iterator[Pair | BadLine]:
    for one, other in zip_longest(source, target):
        if one is None or other is None:
            longer, shorter = (target, source) if one is None else (source, target)
            number = (one or other)[0]
            yield BadLine(
                longer.path, number, f"has no partner: {shorter.path} ends at line {number - 1}"
            )
        elif isinstance(one[1], BadLine):
            yield one[1]
        elif isinstance(other[1], BadLine):
            yield other[1]
        else:
            yield Pair(source.path, one[0], one[1], other[1])
