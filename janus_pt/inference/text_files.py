"""Decoding of text files: one line in, one line out, in order, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, Any

from tqdm import tqdm

from janus_pt.generate.hypotheses import DecodingOptions
from janus_pt.inference.batching import Batching
from janus_pt.inference.generation import Generation
from janus_pt.inference.janus_model import JanusModel
from janus_pt.inference.workers import decode_in_processes
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import decode_lines

STANDARD = "-"
"""Names standard input or output."""
BATCHES_AT_ONCE = 16
"""Batches of a portion: lines that are read, sorted by length, decoded and written together."""


def generate_file(
    model: JanusModel,
    source: str,
    target: str,
    options: DecodingOptions,
    batching: Batching,
    workers: int = 1,
    load: Callable[[], JanusModel] | None = None,
) -> int:
    """Decode each line of the file `source` into one of the file `target`.

    Line breaks within an output become spaces.

    Args:
        options: of `check_options`.
        workers: processes that decode; more than one needs `load`, which makes the model in each
            (picklable).

    Returns:
        The number of lines.

    Raises:
        UserError: a file cannot be opened, or a line (named) is not UTF-8 or too long. The portions
            before it have then been written.
    """
    # Opening the output would empty the input.
    both_are_files = STANDARD not in (source, target)
    if both_are_files and os.path.exists(target) and os.path.samefile(source, target):
        raise UserError(f"{target}: input and output are one file; choose another output")
    if options.num_outputs != 1:
        raise UserError("num_return_sequences: a line in gives one line out; leave it out")
    name = "standard input" if source == STANDARD else source
    done = 0
    with (
        _open(source, 0, "rb") as lines,
        _open(target, 1, "wb") as output,
        tqdm(unit=" sentences", disable=None) as bar,
    ):
        portions = _portions(lines, name, model, batching.batch_size * BATCHES_AT_ONCE)
        for generations in decode_portions(portions, model, options, batching, workers, load):
            for generation in generations:
                output.write(" ".join(generation.text.splitlines()).encode() + b"\n")
            # In a pipe the next program gets whole portions at once.
            output.flush()
            done += len(generations)
            bar.update(len(generations))
    return done


def decode_portions(
    portions: Iterator[list[list[int]]],
    model: JanusModel,
    options: DecodingOptions,
    batching: Batching,
    workers: int = 1,
    load: Callable[[], JanusModel] | None = None,
) -> Iterator[list[Generation]]:
    """Yield the outputs for each portion of source ids, in order.

    Args:
        portions: ids of `JanusModel.encode`.
        workers, load: as in `generate_file`.
    """
    if workers > 1:
        assert load is not None, "worker processes make their own model"
        yield from decode_in_processes(portions, load, options, batching, workers)
        return
    for portion in portions:
        yield model.generate_from_ids(portion, options, batching)


def _portions(
    lines: Iterable[bytes], name: str, model: JanusModel, size: int
) -> Iterator[list[list[int]]]:
    """Yield the ids of `size` lines at a time; `name` stands for the file in messages."""
    sources = _encoded(lines, name, model)
    while portion := list(islice(sources, size)):
        yield portion


def _encoded(lines: Iterable[bytes], name: str, model: JanusModel) -> Iterator[list[int]]:
    for number, text in enumerate(decode_lines(lines, name), start=1):
        yield model.encode(text, f"{name}, line {number}")


def _open(path: str, standard: int, mode: str) -> IO[Any]:
    """Open a file, or the standard stream of number `standard`, which stays open afterwards."""
    is_standard = path == STANDARD
    try:
        return open(standard if is_standard else path, mode, closefd=not is_standard)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror}") from None
