"""The files of a Hugging Face folder: JSON, and tensors that are read one at a time. No code is run.

Weights are `model.safetensors`, or `pytorch_model.bin` read by torch's weights-only loader; either
may be in parts that an index lists. Files are mapped, not read whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from janus_pt.utils.errors import UserError
from janus_pt.utils.files import check_content

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
"""Behind the name of a file that is in parts."""
MAX_JSON_BYTES = 64 << 20
COPY_AGAIN = "copy the folder again"

_REFUSED = re.compile(r"GLOBAL (\S+) was not")
"""Torch names the class that it does not load."""

Read = Callable[[], Tensor]


@dataclass(frozen=True)
class StoredTensors:
    """Tensors in files.

    Attributes:
        origin: names the files in messages.
        shapes: by the tensors' names.
    """

    origin: str
    shapes: Mapping[str, tuple[int, ...]]
    readers: Mapping[str, Read]

    def read(self, name: str) -> Tensor:
        """A tensor; its memory is the file's until it is changed or copied."""
        return self.readers[name]()


def read_json(path: Path, required: bool = True) -> dict[str, Any]:
    """The object of a JSON file; empty if the file is absent and not `required`.

    Raises:
        UserError: the file is missing, too large, or no JSON object.
    """
    if not path.is_file():
        if required:
            raise UserError(f"{path.parent}: no Hugging Face model here, {path.name} is missing")
        return {}
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path}: larger than {MAX_JSON_BYTES} bytes; this is no such file")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {COPY_AGAIN}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold an object; {COPY_AGAIN}")
    return content


def open_weights(folder: Path) -> StoredTensors:
    """The weights of a folder.

    Raises:
        UserError: there are none, or a file is damaged or holds something else than weights.
    """
    for name, open_part in ((SAFETENSORS, _open_safetensors), (PICKLED, _open_pickled)):
        parts = list(_parts(folder, name))
        if not parts:
            continue
        readers: dict[str, Read] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for part in parts:
            check_content(part)
            for key, (shape, read) in open_part(part).items():
                readers[key], shapes[key] = read, shape
        return StoredTensors(str(folder / name), shapes, readers)
    raise UserError(f"{folder}: has no weights: neither {SAFETENSORS} nor {PICKLED}")


def _parts(folder: Path, name: str) -> Iterator[Path]:
    """The file itself, or those that its index lists."""
    if (folder / name).is_file():
        yield folder / name
        return
    index = folder / (name + INDEX)
    listed = read_json(index, required=False).get("weight_map", {})
    for part in sorted(set(map(str, listed.values() if isinstance(listed, dict) else ()))):
        path = folder / part
        # An index from elsewhere must not name files outside the folder.
        if Path(part).name != part or not path.is_file():
            raise UserError(f"{index}: names {part}, which is not here; {COPY_AGAIN}")
        yield path


Opened = dict[str, tuple[tuple[int, ...], Read]]


def _open_safetensors(path: Path) -> Opened:
    try:
        file = safe_open(path, framework="pt")
        opened: Opened = {}
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            shape = tuple(file.get_slice(name).get_shape())
            opened[name] = (shape, partial(file.get_tensor, name))
    except SafetensorError as error:
        raise UserError(f"{path}: cut short or not safetensors ({error}); {COPY_AGAIN}") from None
    return opened


def _open_pickled(path: Path) -> Opened:
    try:
        content = _load_pickled(path)
    except UnpicklingError as error:
        # The rest of the message advises to run what the file holds.
        refused = _REFUSED.search(str(error))
        reason = f": {refused[1]}" if refused else ""
        raise UserError(f"{path}: holds more than tensors, so it is not read{reason}") from None
    # Torch raises these, and EOFError, for files that are cut short.
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged ({reason}); {COPY_AGAIN}") from None
    if not isinstance(content, dict) or not all(map(_is_weight, content.items())):
        raise UserError(f"{path}: should hold tensors by name, but holds something else")
    return {
        name: (tuple(tensor.shape), partial(content.__getitem__, name))
        for name, tensor in content.items()
    }


def _load_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        # Files of torch before 1.6 are no archives, and cannot be mapped.
        if "mmap" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, tensor = item
    return isinstance(name, str) and isinstance(tensor, Tensor)
