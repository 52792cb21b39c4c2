"""Decoding of text files: one line in, one line out, in order, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import IO, Any

from tqdm import tqdm

from janus_pt.inference.janus_model import BATCH_SIZE, Generation, JanusModel
from janus_pt.inference.workers import in_processes
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import decode_lines

STANDARD = "-"
"""Names standard input or output."""
BATCHES_AT_ONCE = 16
"""Batches that are read, sorted by length, decoded and written together."""


def generate_lines(
    model: JanusModel,
    source: str,
    target: str,
    mode: str,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 1,
    load: Callable[[], JanusModel] | None = None,
    **options: Any,
) -> int:
    """Decode each line of the file `source` into one of the file `target`; returns how many there were.

    `mode`, `batch_size` and `options` are those of `JanusModel.generate`. Line breaks within an output become spaces.

    Args:
        workers: processes that decode; more than one needs `load`, which makes the model in each (picklable).

    Raises:
        UserError: a file cannot be opened, or a line (named) is not UTF-8 or too long. Lines before it are written
            as far as their portion was complete.
    """
    if (
        STANDARD not in (source, target)
        and os.path.exists(target)
        and os.path.samefile(source, target)
    ):
        raise UserError(f"{target}: input and output are one file; choose another output")
    if options.get("num_return_sequences", 1) != 1:
        raise UserError("num_return_sequences: a line in gives one line out; leave it out")
    arguments = dict(mode=mode, batch_size=batch_size, **options)
    done = 0
    with (
        _open(source, 0, "rb") as lines,
        _open(target, 1, "wb") as output,
        tqdm(unit=" sentences", disable=None) as bar,
    ):
        portions = _portions(
            lines, "standard input" if source == STANDARD else source, model, batch_size
        )
        for generations in decode_portions(portions, model, workers, load, arguments):
            for generation in generations:
                output.write(" ".join(generation.text.splitlines()).encode() + b"\n")
            output.flush()
            done += len(generations)
            bar.update(len(generations))
    return done


def decode_portions(
    portions: Iterator[list[list[int]]],
    model: JanusModel,
    workers: int,
    load: Callable[[], JanusModel] | None,
    arguments: dict[str, Any],
) -> Iterator[list[Generation]]:
    """What `generate` makes of each portion, in order; `workers` and `load` as in `generate_lines`."""
    if workers == 1:
        return map(partial(model.generate, **arguments), portions)
    assert load is not None
    return in_processes(load, workers, arguments, portions)


def _portions(
    lines: Iterable[bytes], name: str, model: JanusModel, batch_size: int
) -> Iterator[list[list[int]]]:
    inputs = _encoded(lines, name, model)
    while portion := list(islice(inputs, batch_size * BATCHES_AT_ONCE)):
        yield portion


def _encoded(lines: Iterable[bytes], name: str, model: JanusModel) -> Iterator[list[int]]:
    for number, text in enumerate(decode_lines(lines, name), start=1):
        yield model.encode(text, f"{name}, line {number}")


def _open(path: str, standard: int, mode: str) -> IO[Any]:
    try:
        return open(standard if path == STANDARD else path, mode, closefd=path != STANDARD)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror}") from None
