"""Sentence pairs of one file: jsonl, parquet, TSV, TMX, and two files line by line (Moses)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from janus_pt.data_prep.files import BadLine, TextFile, decompressed
from janus_pt.data_prep.inputs import Pair, line_pairs, text_field
from janus_pt.data_prep.pipeline.formats import Record, json_lines, parquet_rows, take_part
from janus_pt.data_prep.pipeline.schema import SourceConfig
from janus_pt.utils.errors import UserError

XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


def pairs(
    source: SourceConfig,
    paths: tuple[Path, ...],
    names: tuple[str, ...],
    part: int = 0,
    parts: int = 1,
) -> Iterator[Record | BadLine]:
    """The pairs of a file, or of two; `names` stand for them in messages.

    Args:
        part: the first pair to take, counted from 0: then every `parts`-th.

    Raises:
        UserError: a file is damaged, cut short, or has another format.
    """
    if source.format == "jsonl":
        return json_lines(paths[0], names[0], partial(_pair, source), part, parts)
    if source.format == "moses":
        return take_part(_moses(paths, names), part, parts)
    readers = {"parquet": _parquet, "tsv": _tsv, "tmx": _tmx}
    return take_part(readers[source.format](source, paths[0], names[0]), part, parts)


def _pair(source: SourceConfig, line: int, values: dict[str, Any]) -> Record:
    """The pair in an object's fields. `ValueError` with the reason if there is none."""
    metadata: dict[str, Any] = {"target": text_field(values, source.target_field)}
    if source.score_field is not None and values.get(source.score_field) is not None:
        metadata["score"] = float(values[source.score_field])
    return Record(line, text_field(values, source.source_field), metadata)


def _parquet(source: SourceConfig, path: Path, name: str) -> Iterator[Record | BadLine]:
    columns = [source.source_field, source.target_field]
    if source.score_field is not None:
        columns.append(source.score_field)
    for row, values in parquet_rows(path, name, columns):
        try:
            yield _pair(source, row, values)
        except (ValueError, TypeError) as error:
            yield BadLine(name, row, str(error))


def _tsv(source: SourceConfig, path: Path, name: str) -> Iterator[Record | BadLine]:
    score = source.score_field
    if score is not None and not score.isdecimal():
        raise UserError(
            f"{name}: score_field of a tsv file is the number of its column, not {score!r}"
        )
    needed = max(source.source_column, source.target_column, int(score or 0)) + 1
    with TextFile(path, name) as file:
        for number, line in file:
            if isinstance(line, BadLine):
                yield line
                continue
            columns = line.split("\t")
            if len(columns) < needed:
                yield BadLine(name, number, f"has {len(columns)} columns, and {needed} are needed")
                continue
            metadata: dict[str, Any] = {"target": columns[source.target_column]}
            try:
                if score is not None:
                    metadata["score"] = float(columns[int(score)])
            except ValueError:
                yield BadLine(name, number, f"the score {columns[int(score or 0)]!r} is no number")
            else:
                yield Record(number, columns[source.source_column], metadata)


def _moses(paths: tuple[Path, ...], names: tuple[str, ...]) -> Iterator[Record | BadLine]:
    with ExitStack() as stack:
        files = [
            stack.enter_context(TextFile(path, name))
            for path, name in zip(paths, names, strict=True)
        ]
        for pair in line_pairs(files[0], files[1]):
            if isinstance(pair, Pair):
                yield Record(pair.line, pair.source, {"target": pair.target})
            else:
                yield pair


def _tmx(source: SourceConfig, path: Path, name: str) -> Iterator[Record | BadLine]:
    """Translation units, one after another; a unit without one of the languages is a bad line."""
    wanted = (source.source_field.lower(), source.target_field.lower())
    with path.open("rb") as raw, decompressed(raw, path.suffix) as stream:
        for number, unit in enumerate(_units(stream, name), start=1):
            segments = dict(_segments(unit))
            missing = [language for language in wanted if not segments.get(language, "").strip()]
            if missing:
                found = ", ".join(segments) or "none"
                reason = f"the unit has no segment in {missing[0]} (it has: {found})"
                yield BadLine(name, number, reason)
            else:
                yield Record(number, segments[wanted[0]], {"target": segments[wanted[1]]})
            # The tree would grow with the file.
            unit.clear()


def _units(stream: IO[bytes], name: str) -> Iterator[ElementTree.Element]:
    number = 0
    try:
        parser = iter(ElementTree.iterparse(stream, events=("start", "end")))
        _, root = next(parser)
        for event, element in parser:
            if event == "end" and element.tag == "tu":
                number += 1
                yield element
                root.clear()
    except (ElementTree.ParseError, EOFError, OSError) as error:
        raise UserError(f"{name}: damaged or cut short after unit {number}: {error}") from None


def _segments(unit: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of each side; regions of languages are ignored."""
    for side in unit.iter("tuv"):
        language = side.get(XML_LANG) or side.get("lang") or ""
        segment = side.find("seg")
        if segment is not None:
            text = " ".join("".join(segment.itertext()).split())
            yield language.lower().partition("-")[0], text
