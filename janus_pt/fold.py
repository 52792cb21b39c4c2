"""Values of many tensors in one block of memory: one copy to a device, one thing to hand to another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes; tensors of a block start at multiples of it."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a block."""

    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def map_leaves(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The same value with everything of a kind changed that is in it, however deep in data classes, tuples, lists and
    dictionaries."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: map_leaves(item, kind, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_leaves(item, kind, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(map_leaves(getattr(value, field.name), kind, change) for field in fields(value)))
    return value


def fold(value: Any) -> tuple[Tensor, Any]:
    """A block, bytes `[size]`, with all tensors of a value, and the value with a `Place` for each.

    Nothing is copied if they lie in one block already, as `unfold` leaves them.
    """
    tensors: list[Tensor] = []
    map_leaves(value, Tensor, tensors.append)
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    if len(storages) == 1 and all(tensor.is_contiguous() for tensor in tensors):
        block = tensors[0].new_empty(0, dtype=torch.uint8).set_(tensors[0].untyped_storage())
        return block, map_leaves(
            value, Tensor, lambda tensor: _place(tensor, tensor.storage_offset() * tensor.itemsize)
        )
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT)
    block = tensors[0].new_empty(starts[-1], dtype=torch.uint8)
    for start, tensor in zip(starts, tensors, strict=False):
        block[start : start + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
    remaining = iter(starts)
    return block, map_leaves(value, Tensor, lambda tensor: _place(tensor, next(remaining)))


def unfold(block: Tensor, layout: Any) -> Any:
    """The value whose tensors are views of a block, where `layout` has them."""

    def view(place: Place) -> Tensor:
        return block[place.start : place.start + place.size].view(place.dtype).view(place.shape)

    return map_leaves(layout, Place, view)


def _place(tensor: Tensor, start: int) -> Place:
    return Place(start, tensor.nbytes, tensor.dtype, tuple(tensor.shape))
