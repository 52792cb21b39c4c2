"""Text files line by line: plain, `.gz`, `.xz` or `.zst`, every bad line named.

Memory does not grow with the file.
"""

from __future__ import annotations

import gzip
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash
from janus_pt.utils.text_files import decode_line

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_LINE_BYTES = 32 * 2**20
"""A longer line is a bad line: a whole line must fit in memory several times."""
COMPRESSED = (".gz", ".xz", ".zst")
"""Suffixes of compressed files."""
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError)
"""Errors of the three decompressors for data that is damaged or cut short."""


class BadLine(NamedTuple):
    """An input line that cannot be used, counted from 1."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


class TextFile:
    """The lines of one file as text, without their line ends (`\\n` or `\\r\\n`)."""

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        """Open the file; compression goes by its suffix. `UserError` if it cannot be read.

        Args:
            name: stands in messages in place of the path, as the URL of a local copy.
        """
        self.path = name or str(path)
        try:
            self._raw: IO[bytes] = open(path, "rb")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None
        self._stream = decompressed(self._raw, Path(path).suffix)

    def __enter__(self) -> TextFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._raw.close()

    def position(self) -> int:
        """Bytes of the stored (compressed) file taken so far."""
        return self._raw.tell()

    def __iter__(self) -> Iterator[tuple[int, str | BadLine]]:
        """Yield (line number, line). `UserError` where compressed data is damaged or cut short."""
        for number, line in enumerate(self._byte_lines(), start=1):
            if line is None:
                yield number, BadLine(self.path, number, f"longer than {MAX_LINE_BYTES:,} bytes")
                continue
            try:
                text = decode_line(line, number)
            except UnicodeDecodeError as error:
                yield number, BadLine(self.path, number, f"invalid UTF-8 at byte {error.start + 1}")
            else:
                yield number, text

    def _byte_lines(self) -> Iterator[bytes | None]:
        """Each line with its end, or None for one that is too long."""
        number = 0
        while True:
            try:
                # Two bytes more, for the longest line end.
                line = self._stream.readline(MAX_LINE_BYTES + 2)
                too_long = len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES
                if too_long:
                    self._skip_line(line)
            except READ_ERRORS as error:
                raise UserError(
                    f"{self.path}: damaged or cut short after line {number}: {error}"
                ) from None
            if not line:
                return
            number += 1
            yield None if too_long else line

    def _skip_line(self, line: bytes) -> None:
        """Read to the end of a line, part by part, so that memory holds no more than one part."""
        while line and not line.endswith(b"\n"):
            line = self._stream.readline(MAX_LINE_BYTES)


def fingerprint(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file. `UserError` if it cannot be read."""
    try:
        return file_hash(Path(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def format_suffix(path: str | Path) -> str:
    """The suffix of the format, without the compression's: `.jsonl` for `a.jsonl.xz`."""
    name = Path(path)
    if name.suffix in COMPRESSED:
        name = name.with_suffix("")
    return name.suffix


def decompressed(raw: IO[bytes], suffix: str) -> IO[bytes]:
    """The decompressed bytes of a file with this suffix.

    All three readers raise an error, not the end of the file, where a file is cut short.
    """
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".zst":
        return cast(IO[bytes], zstd.ZstdFile(raw))
    return raw
