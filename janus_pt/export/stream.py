"""Writing a safetensors file tensor by tensor: no more than one of them need be in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_tensors(
    path: Path, tensors: Iterable[tuple[str, Tensor]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Write tensors of one floating type, given in any order, as a safetensors file.

    Args:
        shapes: name and shape of every tensor there will be.

    Raises:
        ValueError: a tensor has no place in `shapes`, has another shape there or another type, or one is missing.
    """
    missing = set(shapes)
    offsets: dict[str, int] = {}
    dtype: torch.dtype | None = None
    with path.open("wb") as file:
        for name, tensor in tensors:
            if dtype is None:
                dtype = tensor.dtype
                offsets = _write_header(file, dtype, shapes)
            if (
                name not in missing
                or tuple(tensor.shape) != tuple(shapes[name])
                or tensor.dtype != dtype
            ):
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)}, should be {shapes.get(name, 'absent')}"
                )
            missing.remove(name)
            file.seek(offsets[name])
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            content.numpy().tofile(file)
    if missing:
        raise ValueError(f"{min(missing)} is missing, should be {shapes[min(missing)]}")


def _write_header(
    file: object, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Write the list of tensors; where each one's bytes begin."""
    header: dict[str, object] = {}
    begin = 0
    for name, shape in shapes.items():
        end = begin + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)  # type: ignore[attr-defined]
    return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}  # type: ignore[index]
