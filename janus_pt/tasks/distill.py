"""Sequence-level distillation (Kim and Rush 2016): a teacher's outputs for a training set.

The result is a parallel corpus that a student is trained on. The sources are cut into *portions* of
consecutive lines. Each portion is decoded by one process and written as a whole. So a killed run
goes on without loss or duplicates, and any number of processes can share the work on one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from janus_pt.generate.hypotheses import DecodingOptions
from janus_pt.generate.modes import check_options
from janus_pt.inference.batching import Batching
from janus_pt.inference.generation import Generation
from janus_pt.inference.janus_model import JanusModel
from janus_pt.inference.text_files import decode_portions
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash, make_folder, write_bytes_atomically
from janus_pt.utils.text_files import read_lines

PORTION_LINES = 1024
SIDES = ("src", "tgt")
"""Endings of a portion's two files, in the order in which they are written."""


@dataclass(frozen=True)
class DistillationRequest:
    """All that decides the corpus: one request gives the same bytes however the work is shared.

    Attributes:
        model: folder of the teacher's export.
        source: text file, one source a line.
        options: options of `JanusModel.generate` with its mode, without the options of batching.
        n_best: outputs kept for each source.
        dtype: type of the teacher's weights; None: as they are stored.
        portion: lines of a portion.
    """

    model: str
    source: str
    options: Mapping[str, Any]
    n_best: int = 1
    dtype: str | None = None
    portion: int = PORTION_LINES

    def identity(self, lines: Sequence[str]) -> dict[str, Any]:
        """What must not change between the processes and runs that share a folder.

        Args:
            lines: the lines of `source`.
        """
        model_files = sorted(path for path in Path(self.model).iterdir() if path.is_file())
        return {
            # By content: the same model or text may lie somewhere else on another machine.
            "model": {path.name: file_hash(path) for path in model_files},
            "source": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            "options": dict(self.options),
            "n_best": self.n_best,
            "dtype": self.dtype,
            "portion": self.portion,
        }


def distill(
    request: DistillationRequest,
    model: JanusModel,
    output: Path,
    name: str = "train",
    shard: tuple[int, int] = (1, 1),
    workers: int = 1,
    load: Callable[[], JanusModel] | None = None,
    **batching: int,
) -> bool:
    """Decode the missing portions of a shard; once all are there, write `NAME.src` and `NAME.tgt`.

    A source is repeated for each of its outputs. Sources that are empty or that the model cannot
    read are skipped, as are empty outputs and outputs that repeat a better one.

    Args:
        output: folder of the corpus; portions are in `NAME.parts`.
        shard: number i, from 1, of n: the portions i, i + n, … are decoded.
        workers: processes that decode; more than one needs `load`, which makes the model in each
            (picklable).
        batching: `batch_size` and `max_batch_tokens` of `JanusModel.generate`.

    Returns:
        Whether the corpus is complete.

    Raises:
        UserError: the source cannot be read, the model can read no line of it, the model does not
            have an option, or the folder holds portions of another request.
    """
    lines = read_lines(request.source)
    parts = output / f"{name}.parts"
    arguments = {**request.options, **batching, **n_best_options(request.n_best)}
    # What the teacher cannot do is reported before the folder is claimed for this request.
    _try_first_line(request.source, lines, model, arguments)
    make_folder(parts)
    _claim(parts / "request.json", request.identity(lines))

    number, shards = shard
    portions = -(-len(lines) // request.portion)
    of_this_shard = range(number - 1, portions, shards)
    missing = [index for index in of_this_shard if not _part(parts, index, "tgt").exists()]
    # Outputs come back in the order of the inputs: the sources wait here for theirs.
    waiting: deque[tuple[int, list[str]]] = deque()

    def encode_portions() -> Iterator[list[list[int]]]:
        for index in missing:
            first = index * request.portion
            portion_lines = lines[first : first + request.portion]
            texts = [text for text in portion_lines if _is_readable(text, model)]
            waiting.append((index, texts))
            yield [model.encode(text) for text in texts]

    options = _checked_options(request)
    decoded = decode_portions(
        encode_portions(), model, options, Batching(**batching), workers, load
    )
    for generations in tqdm(decoded, total=len(missing), disable=None):
        index, texts = waiting.popleft()
        _write_part(parts, index, list(_pairs(texts, generations, request.n_best)))
    return _join_if_complete(parts, portions, output / name, number)


def _join_if_complete(parts: Path, portions: int, corpus: Path, number: int) -> bool:
    """Write the sides of `corpus` once all portions are there; returns whether they are."""
    if not all(_part(parts, index, "tgt").exists() for index in range(portions)):
        return False
    # Every process that finds all portions done joins them: there is no last one to rely on.
    for side in SIDES:
        files = [_part(parts, index, side) for index in range(portions)]
        _join(files, corpus.with_name(f"{corpus.name}.{side}"), number)
    return True


def _checked_options(request: DistillationRequest) -> DecodingOptions:
    values = {**request.options, **n_best_options(request.n_best)}
    return check_options(values.pop("mode", "ar"), **values)


def n_best_options(n_best: int) -> dict[str, int]:
    """The option for `n_best` outputs; one is the default of all modes, and some have no more."""
    return {"num_return_sequences": n_best} if n_best > 1 else {}


def _try_first_line(
    source: str, lines: Sequence[str], model: JanusModel, arguments: dict[str, Any]
) -> None:
    """Decode the first line that the model can read, so that its errors come before the work."""
    for text in lines:
        if _is_readable(text, model):
            model.generate([text], **arguments)
            return
    raise UserError(f"{source}: every line is empty or too long for the model")


def _is_readable(text: str, model: JanusModel) -> bool:
    if not text.strip():
        return False
    length = len(model.source_tokenizer.encode(text)) + model.config.source_frame.size
    return length <= model.config.max_positions


def _pairs(
    sources: Sequence[str], generations: Sequence[Generation], n_best: int
) -> Iterator[tuple[str, str]]:
    """Each source with each of its outputs; `generations` holds `n_best` in a row for each."""
    for index, source in enumerate(sources):
        outputs = generations[index * n_best : (index + 1) * n_best]
        texts = [" ".join(output.text.split()) for output in outputs]
        # Different tokens may give the same text: it is kept once, where the best of them stands.
        for text in dict.fromkeys(texts):
            if text:
                yield " ".join(source.split()), text


def _part(parts: Path, index: int, side: str) -> Path:
    """A portion's file; the numbers sort like the portions."""
    return parts / f"{index:06d}.{side}"


def _write_part(parts: Path, index: int, pairs: list[tuple[str, str]]) -> None:
    # Sources first: a portion counts as done when its targets are there.
    for column, side in enumerate(SIDES):
        content = "".join(pair[column] + "\n" for pair in pairs)
        write_bytes_atomically(_part(parts, index, side), content.encode())


def _join(parts: list[Path], target: Path, shard: int) -> None:
    """Write all portions as one file; processes that do so at once write the same bytes."""
    content = b"".join(part.read_bytes() for part in parts)
    write_bytes_atomically(target, content, writer=str(shard))


def _claim(path: Path, identity: dict[str, Any]) -> None:
    """Note what the folder is made of, or compare with what is noted there.

    Of several processes that come at once one writes and the others compare.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(identity, indent=1))
    try:
        # A link is made only where there is no file yet, so that exactly one process succeeds, and
        # with its content complete. `replace` would overwrite another's request.
        os.link(partial, path)
    except FileExistsError:
        existing = json.loads(path.read_text())
        # Through JSON, as what is compared has been: tuples are lists there.
        wanted = json.loads(json.dumps(identity))
        changed = [key for key in wanted if existing.get(key) != wanted[key]]
        if changed:
            raise UserError(
                f"{path.parent}: holds portions made with another {', '.join(changed)}; give "
                "another --output or --name"
            ) from None
    finally:
        partial.unlink()
