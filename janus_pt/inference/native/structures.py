"""The structures that the library reads, as `decoder.cpp` declares them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor, nn

POINTER = ctypes.c_void_p
NUMBER = ctypes.c_int64
PANEL = 16
"""Outputs whose weights lie side by side in packed weights."""
NORM_KINDS: dict[type[nn.Module], int] = {nn.Identity: 0, nn.LayerNorm: 1, nn.RMSNorm: 2}
ACTIVATIONS = {"relu": 1, "gelu": 2, "silu": 3}
"""By the name that `model.activation` gives them."""


class Linear(ctypes.Structure):
    """A linear layer with packed weights; int8 if there are scales."""

    _fields_ = [
        ("weight", POINTER),
        ("scale", POINTER),
        ("bias", POINTER),
        ("outputs", NUMBER),
        ("inputs", NUMBER),
    ]


class Norm(ctypes.Structure):
    """A norm, or none."""

    _fields_ = [
        ("weight", POINTER),
        ("bias", POINTER),
        ("kind", NUMBER),
        ("epsilon", ctypes.c_double),
    ]


class Layer(ctypes.Structure):
    """A layer of encoder or decoder; an encoder's has no cross-attention."""

    _fields_ = [
        *((name, Linear) for name in ("qkv", "self_out", "cross_query", "cross_out", "fc1", "fc2")),
        *((name, Norm) for name in ("self_norm", "cross_norm", "final_norm")),
    ]


class Stack(ctypes.Structure):
    """Encoder or decoder."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        *(
            (name, NUMBER)
            for name in ("num_layers", "hidden", "ffn", "heads", "pre_norm", "activation")
        ),
        ("has_cross", NUMBER),
        ("embed_norm", Norm),
        ("last_norm", Norm),
        ("tokens", POINTER),
        ("has_packed_tokens", NUMBER),
        ("positions", POINTER),
        ("token_scale", ctypes.c_double),
    ]


class KeysValues(ctypes.Structure):
    """Keys and values with the strides of rows, heads and keys."""

    _fields_ = [
        ("keys", POINTER),
        ("values", POINTER),
        ("row", NUMBER),
        ("head", NUMBER),
        ("key", NUMBER),
    ]

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> KeysValues:
        """Both `[rows, heads, keys, head_size]`, laid out in the same way."""
        row, head, key, _ = keys.stride()
        return cls(keys.data_ptr(), values.data_ptr(), row, head, key)


class Mask(ctypes.Structure):
    """Which keys may be read, with strides; all, if there is no pointer."""

    _fields_ = [("allowed", POINTER), ("row", NUMBER), ("slot", NUMBER), ("key", NUMBER)]

    @classmethod
    def of(cls, mask: Tensor | None) -> Mask:
        """Of a boolean `[rows or 1, 1, slots or 1, keys]`."""
        if mask is None:
            return cls()
        rows, _, slots, _ = mask.shape
        row, _, slot, key = mask.stride()
        return cls(mask.data_ptr(), row if rows > 1 else 0, slot if slots > 1 else 0, key)


class Pass(ctypes.Structure):
    """What one pass reads and writes."""

    _fields_ = [
        *(
            (name, NUMBER)
            for name in (
                "rows",
                "slots",
                "contents",
                "first",
                "sources",
                "reach",
                "memory_length",
                "start",
            )
        ),
        ("tokens", POINTER),
        ("positions", POINTER),
        ("places", POINTER),
        ("caches", ctypes.POINTER(KeysValues)),
        ("memories", ctypes.POINTER(KeysValues)),
        ("self_mask", Mask),
        ("cross_mask", Mask),
        ("output", POINTER),
        ("threads", NUMBER),
    ]


def array(structures: Sequence[KeysValues]) -> ctypes.Array[KeysValues]:
    """Structures side by side in memory."""
    return (KeysValues * len(structures))(*structures)
