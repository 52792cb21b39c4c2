"""Values of many tensors in one block of memory: one copy to a device, one thing to hand to another
process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from janus_pt.packing.padded import round_up

ALIGNMENT = 64
"""Bytes; tensors of a block start at multiples of it."""


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies in a block; `start` and `size` in bytes."""

    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def map_leaves(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The same value with every leaf of a kind changed, however deep it is.

    Data classes, tuples, lists and dictionaries are walked through, in the order of their fields
    and items. (torch's pytree is private, and each data class would have to be registered with it.)
    """
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: map_leaves(item, kind, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_leaves(item, kind, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, field.name) for field in fields(value)]
        return type(value)(*(map_leaves(item, kind, change) for item in items))
    return value


def pack_tensors(value: Any) -> Any:
    """The same value, its tensors copied into one block."""
    tensors = _tensors(value)
    end = 0

    def next_span(tensor: Tensor) -> TensorSpan:
        nonlocal end
        span = _span(tensor, end)
        end += round_up(span.size, ALIGNMENT)
        return span

    layout = map_leaves(value, Tensor, next_span)
    block = tensors[0].new_empty(end, dtype=torch.uint8)
    packed = unpack_tensors(block, layout)
    # Both walks are in the same order, so tensors and views come in pairs.
    for view, tensor in zip(_tensors(packed), tensors, strict=True):
        view.copy_(tensor)
    return packed


def as_buffer(value: Any) -> tuple[Tensor, Any]:
    """The block, bytes `[size]`, that a value's tensors lie in, and the value with a `TensorSpan`
    for
    each: what `unpack_tensors` takes. A value whose tensors lie elsewhere is packed first."""
    tensors = _tensors(value)
    storage = tensors[0].untyped_storage()
    for tensor in tensors:
        is_inside = tensor.untyped_storage().data_ptr() == storage.data_ptr()
        # A span describes contiguous tensors only.
        if not (is_inside and tensor.is_contiguous()):
            return as_buffer(pack_tensors(value))

    def span_in_block(tensor: Tensor) -> TensorSpan:
        return _span(tensor, int(tensor.storage_offset()) * tensor.itemsize)

    block = tensors[0].new_empty(0, dtype=torch.uint8).set_(storage)
    return block, map_leaves(value, Tensor, span_in_block)


def unpack_tensors(block: Tensor, layout: Any) -> Any:
    """The value whose tensors are views of a block, where `layout` has them."""

    def view(span: TensorSpan) -> Tensor:
        own_bytes = block[span.start : span.start + span.size]
        return own_bytes.view(span.dtype).view(span.shape)

    return map_leaves(layout, TensorSpan, view)


def _span(tensor: Tensor, start: int) -> TensorSpan:
    return TensorSpan(start, tensor.nbytes, tensor.dtype, tuple(tensor.shape))


def _tensors(value: Any) -> list[Tensor]:
    """All tensors of a value, in the order of `map_leaves`."""
    tensors: list[Tensor] = []
    map_leaves(value, Tensor, tensors.append)
    return tensors
