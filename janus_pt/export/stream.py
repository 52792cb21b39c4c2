"""Writing a safetensors file tensor by tensor, so that only one of them need be in memory.

By hand, since the libraries have no such writer: `safetensors.torch.save_file` takes all tensors at
once, and huggingface_hub's writer of sharded models a whole state dict, which it cuts into several
files. The format is simple: the header's length (8 bytes, little endian), the header (JSON, each
tensor with its type, shape and bytes from and to), then the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ALIGNMENT = 8
"""Tensors begin at a multiple of this, so that a mapped file can be used in place."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor by name."""


def write_tensors(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Shapes,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors of one floating type, given in any order, as a safetensors file.

    Args:
        shapes: name and shape of every tensor there will be.
        metadata: texts for the file's header.

    Raises:
        ValueError: a tensor is not in `shapes` or comes twice, has another shape than there or
            another type than the first, or one is missing.
    """
    missing = set(shapes)
    offsets: dict[str, int] = {}
    dtype: torch.dtype | None = None
    with path.open("wb") as file:
        for name, tensor in tensors:
            # The first one decides the type, and with it where each tensor begins.
            if dtype is None:
                dtype = tensor.dtype
                offsets = _write_header(file, dtype, shapes, metadata)
            shape = tuple(tensor.shape)
            if name not in missing or shape != tuple(shapes[name]) or tensor.dtype != dtype:
                raise ValueError(f"{name} is {shape}, should be {shapes.get(name, 'absent')}")
            missing.remove(name)
            file.seek(offsets[name])
            # As bytes: numpy has no bfloat16.
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            # Not tofile, whose error on a full disk does not say so.
            file.write(content.numpy().data)
    if missing:
        first = min(missing)
        raise ValueError(f"{first} is missing, should be {shapes[first]}")


def _write_header(
    file: BinaryIO,
    dtype: torch.dtype,
    shapes: Shapes,
    metadata: Mapping[str, str] | None,
) -> dict[str, int]:
    """Write the list of tensors; the position in the file at which each one's bytes begin."""
    header: dict[str, Mapping[str, object]] = {}
    if metadata:
        header["__metadata__"] = metadata
    begins: dict[str, int] = {}
    begin = 0
    for name, shape in shapes.items():
        end = begin + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begins[name] = begin
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    length = struct.pack("<Q", len(text))
    file.write(length + text)
    # In the header offsets count from its own end.
    header_end = len(length) + len(text)
    return {name: header_end + begin for name, begin in begins.items()}
