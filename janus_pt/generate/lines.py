"""Decoding of text files: one line in, one line out, in order, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any

from janus_pt.api import JanusModel
from janus_pt.errors import UserError

STANDARD = "-"
"""Names standard input or output."""
BATCHES_AT_ONCE = 16
"""Batches that are read, sorted by length, decoded and written together."""


def generate_lines(model: JanusModel, source: str, target: str, mode: str, batch_size: int = 32, **options: Any) -> int:
    """Decode each line of the file `source` into one of the file `target`; returns how many there were.

    `mode`, `batch_size` and `options` are those of `JanusModel.generate`. Line breaks within an output become spaces.

    Raises:
        UserError: a file cannot be opened, or a line (named) is not UTF-8 or too long. Lines before it are written
            as far as their portion was complete.
    """
    if STANDARD not in (source, target) and os.path.exists(target) and os.path.samefile(source, target):
        raise UserError(f"{target}: input and output are one file; choose another output")
    done = 0
    with _open(source, 0, "rb") as lines, _open(target, 1, "wb") as output:
        inputs = _encoded(lines, "standard input" if source == STANDARD else source, model)
        while portion := list(islice(inputs, batch_size * BATCHES_AT_ONCE)):
            for generation in model.generate(portion, mode, batch_size=batch_size, **options):
                output.write(" ".join(generation.text.splitlines()).encode() + b"\n")
            output.flush()
            done += len(portion)
    return done


def _encoded(lines: Iterable[bytes], name: str, model: JanusModel) -> Iterator[list[int]]:
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number}: not valid UTF-8; convert it") from None
        yield model.encode(text.rstrip("\r\n"), f"{name}, line {number}")


def _open(path: str, standard: int, mode: str) -> IO[Any]:
    try:
        return open(standard if path == STANDARD else path, mode, closefd=path != STANDARD)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror}") from None
