"""Text files of tasks: lines, line-by-line files, JSON lines. Plain or .gz."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_pt.utils.errors import UserError


def read_lines(path: str | Path) -> list[str]:
    r"""The lines of a UTF-8 file without their ends (`\n` or `\r\n`); `FILE.gz` is read if there is no FILE.

    Raises:
        UserError: the file is missing, empty, damaged or not UTF-8.
    """
    path = Path(path)
    compressed = path.with_name(path.name + ".gz")
    if not path.exists() and compressed.exists():
        path = compressed
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        # Errors of gzip have no text of the system.
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from None
    if not content:
        raise UserError(f"{path}: the file is empty")
    return list(decode_lines(io.BytesIO(content), str(path)))


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    r"""Yield the text of each line of a file without its end (`\n` or `\r\n`).

    Args:
        lines: as a file opened in binary mode gives them.
        name: of the file, for messages.

    Raises:
        UserError: a line is not UTF-8.
    """
    for number, line in enumerate(lines, start=1):
        try:
            yield decode_line(line, number)
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number}: not valid UTF-8; convert it") from None


def decode_line(line: bytes, number: int) -> str:
    r"""The text of the line with this number, counted from 1, without its end (`\n` or `\r\n`)."""
    # Editors on Windows put a byte order mark before the first line.
    encoding = "utf-8-sig" if number == 1 else "utf-8"
    return line.removesuffix(b"\n").removesuffix(b"\r").decode(encoding)


def read_objects(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. `UserError` names a line that holds none."""
    objects = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: broken JSON ({error})") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        # JSON can spell half of a surrogate pair, which no file can hold and no tokenizer takes.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{path}, line {number}: not valid Unicode: half of a surrogate pair"
            ) from None
        objects.append(value)
    return objects


def check_equally_long(lines: Mapping[str, Sequence[Any]]) -> None:
    """Raise `UserError` unless all files have the same number of lines."""
    first_path = next(iter(lines))
    expected = len(lines[first_path])
    for path, lines_of_path in lines.items():
        if len(lines_of_path) != expected:
            raise UserError(
                f"{path}: {len(lines_of_path)} lines, but {first_path} has {expected}; they go together line by line"
            )


def check_writable(path: str | Path) -> None:
    """Raise `UserError` unless a file can be written there: before the work, not after it."""
    path = Path(path)
    existed = path.exists()
    try:
        # Opened, since permissions alone do not tell: the file system may be read-only.
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file. `UserError` if it cannot be written."""
    try:
        Path(path).write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def print_json(content: Mapping[str, Any]) -> None:
    """Print JSON as `write_json` writes it."""
    print(json.dumps(content, indent=1, ensure_ascii=False))
