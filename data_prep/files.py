"""Text files line by line: plain, `.gz`, `.xz` or `.zst`, every bad line named.

Memory does not grow with the file.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

import zstandard

from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash

MAX_LINE_BYTES = 32 * 2**20
"""A longer line is a bad line: a whole line must fit in memory several times."""
CHUNK = 2**20


class BadLine(NamedTuple):
    """An input line that cannot be used, counted from 1."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


class TextFile:
    """The lines of one file as text, without their line ends (`\\n` or `\\r\\n`)."""

    def __init__(self, path: str | Path) -> None:
        """Open the file; compression goes by its suffix. `UserError` if it cannot be read."""
        self.path = str(path)
        try:
            self._raw: IO[bytes] = open(path, "rb")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        self._stream = _decompressed(self._raw, Path(path).suffix)

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
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, BadLine(self.path, number, f"invalid UTF-8 at byte {error.start + 1}")
            else:
                yield number, text

    def _byte_lines(self) -> Iterator[bytes | None]:
        """Each line without its end, or None for one that is too long."""
        number = 0
        while True:
            try:
                line = self._stream.readline(MAX_LINE_BYTES + 2)
                too_long = len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES
                while line and too_long and not line.endswith(b"\n"):
                    line = self._stream.readline(MAX_LINE_BYTES)
            except (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
                raise UserError(
                    f"{self.path}: damaged or cut short after line {number}: {error}"
                ) from None
            if not line and not too_long:
                return
            number += 1
            yield None if too_long else line.rstrip(b"\n").removesuffix(b"\r")


def fingerprint(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file. `UserError` if it cannot be read."""
    try:
        return file_hash(Path(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def format_suffix(path: str | Path) -> str:
    """The suffix that tells the format, compression apart: `.jsonl` for `a.jsonl.xz`."""
    name = Path(path)
    return name.with_suffix("").suffix if name.suffix in (".gz", ".xz", ".zst") else name.suffix


def _decompressed(raw: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".zst":
        return cast(IO[bytes], io.BufferedReader(_Zstandard(raw), CHUNK))
    return raw


class _Zstandard(io.RawIOBase):
    """Decompressed bytes of one or more frames.

    `zstandard`'s own reader takes a file cut short for its end; text would be lost without a word.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._chunks = self._decompress(raw)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    @staticmethod
    def _decompress(raw: IO[bytes]) -> Iterator[bytes]:
        frame = None
        while data := raw.read(CHUNK // 16):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if frame is not None:
            raise EOFError("compressed file ended before the end of a frame")
