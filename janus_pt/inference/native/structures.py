"""The structures that the library reads, as `decoder.cpp` declares them, and what makes them of modules."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from janus_pt.inference.native.build import load_library
from janus_pt.model.norms import NORM_EPS

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


class PackedWeights:
    """The weights of some layers as the library reads them; they stay as long as this does."""

    def __init__(self, int8: bool) -> None:
        """`int8`: weights in int8, a scale for each output, whose inputs have 16 bits."""
        self.int8 = int8
        self._kept: list[Tensor] = []

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Pack `weight [outputs, inputs]`."""
        outputs, inputs = weight.shape
        weight = weight.contiguous()
        padded = -(-outputs // PANEL) * PANEL
        scales = None
        if self.int8:
            packed = self.keep(torch.empty(padded * (inputs + inputs % 2), dtype=torch.int8))
            scales = self.keep(torch.empty(padded))
            load_library().janus_pack_bytes(
                POINTER(weight.data_ptr()),
                NUMBER(outputs),
                NUMBER(inputs),
                POINTER(packed.data_ptr()),
                POINTER(scales.data_ptr()),
            )
        else:
            packed = self.keep(torch.empty(padded * inputs))
            load_library().janus_pack_floats(
                POINTER(weight.data_ptr()),
                NUMBER(outputs),
                NUMBER(inputs),
                POINTER(packed.data_ptr()),
            )
        return Linear(
            packed.data_ptr(), self._pointer(scales), self._pointer(bias), outputs, inputs
        )

    def layer(self, module: nn.Module) -> Linear:
        """Pack a linear layer's."""
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        return self.linear(weight.detach(), None if bias is None else bias.detach())

    def norm(self, module: nn.Module) -> Norm:
        """A norm's parameters."""
        kind = NORM_KINDS[type(module)]
        if not kind:
            return Norm()
        weight, bias = module.get_parameter("weight").detach(), getattr(module, "bias", None)
        bias = None if bias is None else bias.detach()
        return Norm(self._pointer(weight), self._pointer(bias), kind, NORM_EPS)

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor, row by row in memory, which stays."""
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor

    def _pointer(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self.keep(tensor).data_ptr()


def array(structures: Sequence[KeysValues]) -> ctypes.Array[KeysValues]:
    """Structures side by side in memory."""
    return (KeysValues * len(structures))(*structures)
