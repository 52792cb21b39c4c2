"""Input files as a stream of work items: documents of a monolingual corpus, or the line pairs of a parallel one.

A `.jsonl` file has a document a line; in any other text file a blank line ends a document. Which records an item
holds depends on the input alone, never on the number of processes, so an item's number is a position in the input.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

from janus_pt.data_prep.blocks import PIECE_CHARACTERS, cut_pieces
from janus_pt.data_prep.files import BadLine, TextFile, format_suffix
from janus_pt.utils.errors import UserError

ITEM_CHARACTERS = 2**18
"""An item is closed when it holds this much. A build that was interrupted relies on it: see `journal.py`."""
RECORD_COST = 64
"""Characters added for each record, so that an item of empty records or bad lines is closed, too."""

OnError = Literal["stop", "skip"]


class Pair(NamedTuple):
    """A line of a parallel corpus."""

    file: str
    line: int
    source: str
    target: str


class Item(NamedTuple):
    """Work for one process: texts, or pairs; the bad lines between them; the stored input bytes read so far."""

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
    size = 0
    finished_bytes = 0
    for paths in inputs:
        with ExitStack() as stack:
            files = [stack.enter_context(TextFile(path)) for path in paths]
            for record in _records(files, field):
                size += RECORD_COST + _add(item, record, on_error)
                if size >= ITEM_CHARACTERS:
                    yield item._replace(position=finished_bytes + _position(files))
                    item = Item([], [], [], 0)
                    size = 0
            # An item may hold the end of one file and the beginning of the next.
            finished_bytes += _position(files)
    if size:
        yield item._replace(position=finished_bytes)


def _records(files: Sequence[TextFile], field: str) -> Iterator[str | Pair | BadLine]:
    if len(files) == 2:
        return line_pairs(files[0], files[1])
    return documents(files[0], field)


def _position(files: Sequence[TextFile]) -> int:
    return sum(file.position() for file in files)


def read_texts(paths: Iterable[str], field: str) -> Iterator[str]:
    """Yield every document of the files, long ones in pieces. `UserError` at the first bad line."""
    for path in paths:
        with TextFile(path) as file:
            for record in documents(file, field):
                if isinstance(record, BadLine):
                    raise UserError(str(record))
                yield record


def documents(file: TextFile, field: str) -> Iterator[str | BadLine]:
    """Yield a file's documents, long ones in pieces of at most `PIECE_CHARACTERS`; joined they are the document."""
    if format_suffix(file.path) == ".jsonl":
        return _json_documents(file, field)
    return _plain_documents(file)


def _add(item: Item, record: str | Pair | BadLine, on_error: OnError) -> int:
    """Put a record in its list; return its characters."""
    if isinstance(record, str):
        item.texts.append(record)
        return len(record)
    if isinstance(record, Pair):
        item.pairs.append(record)
        return len(record.source) + len(record.target)
    if on_error == "stop":
        raise UserError(f"{record} (repair it, or skip bad lines with --on-error skip)")
    item.bad.append(record)
    return 0


def _plain_documents(file: TextFile) -> Iterator[str | BadLine]:
    """Documents that a blank line ends."""
    lines: list[str] = []
    size = 0
    for _, line in file:
        if isinstance(line, BadLine):
            yield line
        elif line.strip():
            lines.append(line)
            size += len(line) + 1
            # A file without blank lines must not be held in memory as a whole.
            if size > 2 * PIECE_CHARACTERS:
                pieces = list(cut_pieces("\n".join(lines)))
                rest = pieces.pop()
                yield from pieces
                lines = [rest]
                # One more: the line break after the last line is part of the document.
                size = len(rest) + 1
        else:
            yield from cut_pieces("\n".join(lines))
            lines = []
            size = 0
    yield from cut_pieces("\n".join(lines))


def _json_documents(file: TextFile, field: str) -> Iterator[str | BadLine]:
    """Documents in a field of JSON objects, one a line."""
    for number, line in file:
        if isinstance(line, BadLine):
            yield line
        elif line.strip():
            try:
                text = text_field(json_object(line), field)
            except ValueError as error:
                yield BadLine(file.path, number, str(error))
            else:
                yield from cut_pieces(text)


def json_object(line: str) -> dict[str, Any]:
    """The object on a line of a `.jsonl` file. `ValueError` with the reason if there is none."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("broken JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def text_field(document: dict[str, Any], field: str) -> str:
    """The text in a field. `ValueError` with the reason if there is none."""
    if field not in document:
        existing = ", ".join(list(document)[:8]) or "none"
        raise ValueError(f'no field "{field}" (it has: {existing})')
    text = document[field]
    if not isinstance(text, str):
        raise ValueError(f'field "{field}" is not a string but {type(text).__name__}')
    # JSON can spell what no encoder of UTF-8 accepts.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f'field "{field}" is not valid Unicode: it has half of a surrogate pair'
        ) from None
    return text


def line_pairs(source: TextFile, target: TextFile) -> Iterator[Pair | BadLine]:
    """Pairs of the lines with the same number."""
    no_line = (0, None)
    for source_entry, target_entry in zip_longest(source, target, fillvalue=no_line):
        source_number, source_line = source_entry
        target_number, target_line = target_entry
        if source_line is None:
            yield _without_partner(target, target_number, shorter=source)
        elif target_line is None:
            yield _without_partner(source, source_number, shorter=target)
        # One bad line is listed for a pair; the other file's line is dropped with it.
        elif isinstance(source_line, BadLine):
            yield source_line
        elif isinstance(target_line, BadLine):
            yield target_line
        else:
            yield Pair(source.path, source_number, source_line, target_line)


def _without_partner(longer: TextFile, number: int, shorter: TextFile) -> BadLine:
    return BadLine(longer.path, number, f"has no partner: {shorter.path} ends at line {number - 1}")
