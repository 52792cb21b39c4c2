"""Values of many tensors in one block of memory: one copy to a device, one thing to hand to another
process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes; tensors of a block start at multiples of it."""


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies in a block."""

    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def map_leaves(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The same value with everything of a kind changed that is in it, however deep in data classes,
    tuples, lists and dictionaries."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: map_leaves(item, kind, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_leaves(item, kind, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            *(map_leaves(getattr(value, field.name), kind, change) for field in fields(value))
        )
    return value


def pack_tensors(value: Any) -> Any:
    """The same value, its tensors copied into one block."""
    tensors, starts = _tensors(value), [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT)
    block, remaining = tensors[0].new_empty(starts[-1], dtype=torch.uint8), iter(starts)
    folded = unpack_tensors(
        block, map_leaves(value, Tensor, lambda tensor: _span(tensor, next(remaining)))
    )
    for view, tensor in zip(_tensors(folded), tensors, strict=True):
        view.copy_(tensor)
    return folded


def as_buffer(value: Any) -> tuple[Tensor, Any]:
    """The block, bytes `[size]`, that a value's tensors lie in, and the value with a `TensorSpan`
    for each: what `unpack_tensors` takes. A value whose tensors lie elsewhere is folded first."""
    tensors = _tensors(value)
    storage = tensors[0].untyped_storage()
    if any(
        t.untyped_storage().data_ptr() != storage.data_ptr() or not t.is_contiguous()
        for t in tensors
    ):
        return as_buffer(pack_tensors(value))
    block = tensors[0].new_empty(0, dtype=torch.uint8).set_(storage)
    return block, map_leaves(
        value, Tensor, lambda tensor: _span(tensor, tensor.storage_offset() * tensor.itemsize)
    )


def unpack_tensors(block: Tensor, layout: Any) -> Any:
    """The value whose tensors are views of a block, where `layout` has them."""

    def view(place: TensorSpan) -> Tensor:
        return block[place.start : place.start + place.size].view(place.dtype).view(place.shape)

    return map_leaves(layout, TensorSpan, view)


def _span(tensor: Tensor, start: int) -> TensorSpan:
    return TensorSpan(start, tensor.nbytes, tensor.dtype, tuple(tensor.shape))


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_leaves(value, Tensor, found.append)
    return found
