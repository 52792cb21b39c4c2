"""Records of one file: documents from jsonl, parquet, text and WARC, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from janus_pt.data_prep.files import (
    MAX_LINE_BYTES,
    READ_ERRORS,
    BadLine,
    TextFile,
    decompressed,
)
from janus_pt.data_prep.inputs import json_object, text_field
from janus_pt.data_prep.pipeline.schema import SourceConfig
from janus_pt.utils.errors import UserError

HTML_TYPES = ("text/html", "application/xhtml+xml")
END_OF_RECORD = b"\r\n\r\n"
PARQUET_BATCH = 1000
"""Rows read at once."""


class Record(NamedTuple):
    """A document or a pair."""

    line: int
    """Line, row or record in the file, counted from 1."""
    text: str
    """The document, or the source of a pair."""
    metadata: dict[str, Any]
    """`target` and `score` of a pair; `html`: the text is a page, from which its text is still to be taken."""


def documents(
    source: SourceConfig, path: Path, name: str, part: int = 0, parts: int = 1
) -> Iterator[Record | BadLine]:
    """The documents of a file; `name` stands for it in messages.

    Args:
        part: the first record to take, counted from 0: then every `parts`-th.

    Raises:
        UserError: the file is damaged, cut short, or has another format.
    """
    if source.format == "jsonl":
        return json_lines(path, name, partial(_document, source), part, parts)
    if source.format == "parquet":
        records = _parquet(source, path, name)
    elif source.format == "warc":
        records = _warc(path, name)
    else:
        records = _plain(path, name)
    return take_part(records, part, parts)


def take_part(
    records: Iterator[Record | BadLine], part: int, parts: int
) -> Iterator[Record | BadLine]:
    """The records `part`, `part + parts`, …, of which bad lines are some."""
    yield from islice(records, part, None, parts)


def _document(source: SourceConfig, line: int, values: dict[str, Any]) -> Record:
    """The document in an object's field. `ValueError` with the reason if there is none."""
    return Record(line, text_field(values, source.field), {})


def json_lines(
    path: Path,
    name: str,
    make: Callable[[int, dict[str, Any]], Record],
    part: int = 0,
    parts: int = 1,
) -> Iterator[Record | BadLine]:
    """The records `part`, `part + parts`, …, which `make` makes of a line's number and its object.

    A line is bad, with the reason, where there is no object, or `make` raises ValueError or TypeError.
    """
    with TextFile(path, name) as file:
        # Chosen before they are parsed: the tasks that share a file would all parse all of it.
        for number, line in islice(filter(_is_record, file), part, None, parts):
            if isinstance(line, BadLine):
                yield line
            else:
                try:
                    yield make(number, json_object(line))
                except (ValueError, TypeError) as error:
                    yield BadLine(name, number, str(error))


def _is_record(entry: tuple[int, str | BadLine]) -> bool:
    """Whether a line of jsonl is more than white space."""
    line = entry[1]
    return isinstance(line, BadLine) or bool(line and not line.isspace())


def _plain(path: Path, name: str) -> Iterator[Record | BadLine]:
    """Documents between blank lines."""
    with TextFile(path, name) as file:
        lines: list[str] = []
        size = first = 0
        for number, line in file:
            if isinstance(line, BadLine):
                yield line
                continue
            if line.strip():
                first = first or number
                lines.append(line)
                size += len(line) + 1
            if lines and (not line.strip() or size > MAX_LINE_BYTES):
                if size > MAX_LINE_BYTES:
                    yield BadLine(
                        name, first, "no blank line follows for 32 MB: one ends a document"
                    )
                else:
                    yield Record(first, "\n".join(lines), {})
                lines = []
                size = first = 0
        if lines:
            yield Record(first, "\n".join(lines), {})


def parquet_rows(path: Path, name: str, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row, counted from 1, and its values) of some columns.

    Raises:
        UserError: the file is damaged or cut short, or lacks a column.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    row = 0
    try:
        with ParquetFile(path) as file:
            existing = file.schema_arrow.names
            for column in columns:
                if column not in existing:
                    raise UserError(f'{name}: no column "{column}" (it has: {", ".join(existing)})')
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
                for values in batch.to_pylist():
                    row += 1
                    yield row, values
    except (ArrowException, OSError) as error:
        raise UserError(f"{name}: damaged or cut short after row {row}: {error}") from None


def _parquet(source: SourceConfig, path: Path, name: str) -> Iterator[Record | BadLine]:
    for row, values in parquet_rows(path, name, [source.field]):
        try:
            text = text_field(values, source.field)
        except ValueError as error:
            yield BadLine(name, row, str(error))
        else:
            yield Record(row, text, {})


def _warc(path: Path, name: str) -> Iterator[Record | BadLine]:
    """Pages of a WARC file, and texts of a WET file.

    datatrove's reader, and warcio under it, take a file that was cut short for a shorter one. So does this
    one if the cut lies between two records: the format says nowhere how many there are.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed
    from warcio.statusandheaders import StatusAndHeadersParserException

    number = 0
    try:
        with path.open("rb") as raw, decompressed(raw, path.suffix) as stream:
            whole = _WholeStream(stream)
            records = ArchiveIterator(whole)
            loader = records.loader
            loader.http_parser = _HeadersParser(loader.http_parser)
            loader.http_req_parser = _HeadersParser(loader.http_req_parser)
            for number, record in enumerate(records, start=1):
                page = _page(record)
                # What is left of the record's length did not come.
                record.raw_stream.read()
                if record.raw_stream.limit:
                    raise EOFError(f"{record.raw_stream.limit} bytes of a record are missing")
                if isinstance(page, str):
                    yield BadLine(name, number, page)
                elif page is not None:
                    yield page._replace(line=number)
            if whole.tail != END_OF_RECORD:
                raise EOFError("the last record has no end")
    except (*READ_ERRORS, ArchiveLoadFailed, StatusAndHeadersParserException) as error:
        raise UserError(f"{name}: damaged or cut short after record {number}: {error}") from None


class _WholeStream:
    """A stream for warcio, which takes an EOFError for the end of the file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tail = b""
        """The last bytes that were read."""

    def read(self, size: int = -1) -> bytes:
        try:
            content = self._stream.read(size)
        except EOFError as error:
            raise OSError(str(error)) from None
        self.tail = (self.tail + content[-len(END_OF_RECORD) :])[-len(END_OF_RECORD) :]
        return content

    def tell(self) -> int:
        return self._stream.tell()


class _HeadersParser:
    """warcio's parser of HTTP headers, for a file that ends before them."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser

    def parse(self, stream: Any, *arguments: Any) -> Any:
        try:
            return self._parser.parse(stream, *arguments)
        except EOFError:
            # A record may have none, if it has no content at all.
            if not getattr(stream, "limit", 0):
                raise
            raise OSError("a record's headers are missing") from None


def _page(record: Any) -> Record | str | None:
    """A page; or what is wrong with it; or None for a record that holds none."""
    if record.rec_type not in ("response", "conversion"):
        return None
    is_text = record.rec_type == "conversion"
    kind = record.rec_headers.get("WARC-Identified-Payload-Type")
    if kind is None and record.http_headers is not None:
        kind = record.http_headers.get("Content-Type")
    kind = (kind or "").partition(";")[0].strip().lower()
    content = record.content_stream().read()
    if not is_text and kind not in HTML_TYPES:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = _guessed(content)
        if text is None:
            return "its characters are in no encoding that could be guessed"
    url = record.rec_headers.get("WARC-Target-URI")
    return Record(0, text, {"url": url} if is_text else {"url": url, "html": True})


def _guessed(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(content).best()
    return None if best is None else str(best)
