"""Layers whose weights are packed as the library reads them, in place of a model's own."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from janus_pt.inference.native.build import load_library
from janus_pt.inference.native.structures import NUMBER, PANEL, POINTER, Linear


class NativeLinear(nn.Module):
    """A linear layer by the library.

    Its weights are in memory once, packed: it has no parameters that could be saved, moved or trained.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, int8: bool = False) -> None:
        """`weight [outputs, inputs]` and `bias` are float32 on the CPU, and are copied.

        With `int8` weights have 8 bits and each output a scale; inputs are rounded to 16 bits.
        """
        super().__init__()
        outputs, inputs = weight.shape
        weight = weight.detach().contiguous()
        padded = -(-outputs // PANEL) * PANEL
        # Buffers would be saved, and moved or converted with the model.
        self.scales = torch.empty(padded) if int8 else None
        self.bias = None if bias is None else bias.detach().clone()
        # Else numbers would be taken for 32 bits.
        sizes = (POINTER(weight.data_ptr()), NUMBER(outputs), NUMBER(inputs))
        if self.scales is not None:
            self.packed = torch.empty(padded * (inputs + inputs % 2), dtype=torch.int8)
            load_library().janus_pack_bytes(
                *sizes, POINTER(self.packed.data_ptr()), POINTER(self.scales.data_ptr())
            )
        else:
            self.packed = torch.empty(padded * inputs)
            load_library().janus_pack_floats(*sizes, POINTER(self.packed.data_ptr()))
        self.structure = Linear(
            self.packed.data_ptr(), pointer(self.scales), pointer(self.bias), outputs, inputs
        )
        """Points to the tensors above."""
        self._multiply = load_library().janus_multiply
        self._multiply.argtypes = [POINTER, POINTER, NUMBER, POINTER, NUMBER]
        self._multiply.restype = None

    @property
    def address(self) -> int:
        """Of the structure."""
        return ctypes.addressof(self.structure)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., inputs]` to `[..., outputs]`."""
        x = x.contiguous()
        product = torch.empty(*x.shape[:-1], self.structure.outputs)
        rows = x.numel() // self.structure.inputs
        threads = torch.get_num_threads()
        self._multiply(self.address, x.data_ptr(), rows, product.data_ptr(), threads)
        return product

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeLinear:
        """Itself: nothing in it changes, and a copied structure would point to this one's tensors."""
        return self


class NativeEmbedding(nn.Module):
    """A table of embeddings that is an output projection's weights, packed in float32."""

    def __init__(self, projection: NativeLinear) -> None:
        super().__init__()
        self._projection = projection

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows `[..., inputs]` of the projection's weights for `tokens [...]`."""
        # [panels, inputs, PANEL]
        panels = self._projection.packed.view(-1, self._projection.structure.inputs, PANEL)
        return panels[tokens // PANEL, :, tokens % PANEL]


def pointer(tensor: Tensor | None) -> int | None:
    """The address of the first number; none without a tensor."""
    return None if tensor is None else tensor.data_ptr()
