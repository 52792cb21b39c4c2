"""Sequence-level distillation (Kim and Rush 2016): a teacher's outputs for a training set, as a parallel corpus.

The sources are cut into *portions* of consecutive lines. Each is decoded by one process and written as a whole, so
that a killed run goes on without loss or duplicates, and any number of processes may share the work on one folder.
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

from janus_pt.inference.janus_model import Generation, JanusModel
from janus_pt.inference.text_files import decode_portions
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash, make_folder, write_bytes_atomically
from janus_pt.utils.text_files import read_lines

PORTION = 1024
"""Lines of a portion."""
SIDES = ("src", "tgt")


@dataclass(frozen=True)
class Request:
    """What is distilled: with the same request the same bytes come out, however the work is shared.

    model: folder of the teacher's export; options: of `JanusModel.generate`, mode included, but for those of batching;
    n_best: outputs kept for each source; portion: lines of one.
    """

    model: str
    source: str
    options: Mapping[str, Any]
    n_best: int = 1
    dtype: str | None = None
    portion: int = PORTION

    def described(self, lines: Sequence[str]) -> dict[str, Any]:
        """What must not change between processes and runs that share a folder; `lines` are the source's."""
        return {
            "model": {
                path.name: file_hash(path)
                for path in sorted(Path(self.model).iterdir())
                if path.is_file()
            },
            "source": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            **{
                "options": dict(self.options),
                "n_best": self.n_best,
                "dtype": self.dtype,
                "portion": self.portion,
            },
        }


def distill(
    request: Request,
    model: JanusModel,
    output: Path,
    name: str = "train",
    shard: tuple[int, int] = (1, 1),
    workers: int = 1,
    load: Callable[[], JanusModel] | None = None,
    **batching: int,
) -> bool:
    """Decode this shard's portions that are missing; when all shards' are there, write `NAME.src` and `NAME.tgt`.

    A source stands once for each of its outputs. Sources that are empty or that the model cannot read, empty outputs
    and outputs that repeat a better one are left out.

    Args:
        output: folder of the corpus; portions are in `NAME.parts`.
        shard: number i, from 1, of n: portions i, i + n, … are decoded.
        workers: processes that decode; more than one needs `load`, which makes the model in each (picklable).
        batching: `batch_size` and `max_batch_tokens` of `JanusModel.generate`.

    Returns:
        Whether the corpus is complete.

    Raises:
        UserError: the source cannot be read, no line of it by the model, the model does not do what is asked for, or
            the folder holds portions of another request.
    """
    lines = read_lines(request.source)
    parts, arguments = (
        output / f"{name}.parts",
        {**request.options, **batching, **outputs_wanted(request.n_best)},
    )
    try:  # what the teacher cannot do is told before the folder is claimed for it
        model.generate([next(text for text in lines if _readable(text, model))], **arguments)
    except StopIteration:
        raise UserError(
            f"{request.source}: every line is empty or too long for the model"
        ) from None
    make_folder(parts)
    _claim(parts / "request.json", request.described(lines))
    number, shards = shard
    count = -(-len(lines) // request.portion)
    missing = [
        place
        for place in range(number - 1, count, shards)
        if not _part(parts, place, "tgt").exists()
    ]
    reading: deque[tuple[int, list[str]]] = deque()

    def portions() -> Iterator[list[list[int]]]:
        for place in missing:
            own = lines[place * request.portion : (place + 1) * request.portion]
            texts = [text for text in own if _readable(text, model)]
            reading.append((place, texts))
            yield [model.encode(text) for text in texts]

    for found in tqdm(
        decode_portions(portions(), model, workers, load, arguments),
        total=len(missing),
        disable=None,
    ):
        place, texts = reading.popleft()
        _write_part(parts, place, list(_pairs(texts, found, request.n_best)))
    complete = all(_part(parts, place, "tgt").exists() for place in range(count))
    for side in SIDES if complete else ():
        _join(
            [_part(parts, place, side) for place in range(count)], output / f"{name}.{side}", number
        )
    return complete


def outputs_wanted(n_best: int) -> dict[str, int]:
    """The option for `n_best` outputs; speculative decoding and BANG's have none, as they make one."""
    return {"num_return_sequences": n_best} if n_best > 1 else {}


def _readable(text: str, model: JanusModel) -> bool:
    return (
        bool(text.strip())
        and len(model.source_tokenizer.encode(text)) + 2 <= model.config.max_positions
    )


def _pairs(sources: list[str], found: list[Generation], n_best: int) -> Iterator[tuple[str, str]]:
    """Each source with each of its outputs, `n_best` of which stand together."""
    for place, source in enumerate(sources):
        outputs = (
            " ".join(one.text.split()) for one in found[place * n_best : (place + 1) * n_best]
        )
        for text in dict.fromkeys(outputs):
            if text:
                yield " ".join(source.split()), text


def _part(parts: Path, place: int, side: str) -> Path:
    return parts / f"{place:06d}.{side}"


def _write_part(parts: Path, place: int, pairs: list[tuple[str, str]]) -> None:
    """Sources first: a portion is there when its targets are."""
    for column, side in enumerate(SIDES):
        content = "".join(pair[column] + "\n" for pair in pairs)
        write_bytes_atomically(_part(parts, place, side), content.encode())


def _join(parts: list[Path], target: Path, number: int) -> None:
    """All portions in one file; processes that do so at the same time write the same."""
    content = b"".join(part.read_bytes() for part in parts)
    write_bytes_atomically(target, content, writer=str(number))


def _claim(path: Path, wanted: dict[str, Any]) -> None:
    """Write down what the folder is made of, or compare; the first of several processes that come at once writes."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(wanted, indent=1))
    try:
        os.link(partial, path)
    except FileExistsError:
        there = json.loads(path.read_text())
        if changed := [
            key for key in wanted if there.get(key) != json.loads(json.dumps(wanted[key]))
        ]:
            raise UserError(
                f"{path.parent}: holds portions made with another {', '.join(changed)}; give another --output or --name"
            ) from None
    finally:
        partial.unlink()
