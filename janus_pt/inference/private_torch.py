"""Parts of torch that are private or deprecated, each used in this one place.

tests/inference/test_private_torch.py fails with a clear message when one of them moves or changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def can_pack_bfloat16() -> bool:
    """Whether this CPU has instructions with which oneDNN multiplies in bfloat16."""
    # torch's public flags say only that oneDNN is there, not what it can do on this machine.
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_weight(weight: Tensor, rows: int) -> Tensor:
    """`weight [out, in]` in the blocks that oneDNN multiplies by, opaque.

    Args:
        rows: rows of input that the blocks are chosen for; they serve any number.
    """
    # `F.linear` packs the weights anew at every call. `torch.utils.mkldnn.to_mkldnn`, which is
    # public, packs them once, but its inputs and outputs must then be of the opaque kind as well.
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def linear_with_packed_weight(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`x [..., in]` times a packed weight, plus the bias: `[..., out]`."""
    # The operator that torch.compile uses for frozen weights; "none": no function applied after.
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def record(
    function: Callable[..., Tensor], example: Sequence[Tensor], opaque: Sequence[nn.Module]
) -> Callable[..., Tensor]:
    """`function` as one call of its operators, without Python.

    Deprecated as TorchScript is; `torch.compile` and `torch.export` take a compiler, and tens of seconds, to do it.

    Args:
        example: tensors `function` is called with once. It serves any sizes: those it reads are recorded, too.
        opaque: modules used whose weights are no plain tensors. No other weight may require gradients.
    """
    with warnings.catch_warnings():
        # Of the deprecation, and of every condition on sizes: which of these may be there, `run_pass` says.
        warnings.simplefilter("ignore")
        recorded = torch.jit.trace(_Function(function, opaque), tuple(example), check_trace=False)

    def call(*tensors: Tensor) -> Tensor:
        # Optimising takes longer than it ever saves: 0.1 s at the first two calls.
        with torch.jit.optimized_execution(False):
            result: Tensor = recorded(*tensors)
            return result

    return call


class _Function(nn.Module):
    """A function as a module, to which the tracer lets such weights belong."""

    def __init__(self, function: Callable[..., Tensor], opaque: Sequence[nn.Module]) -> None:
        super().__init__()
        self._function = [function]
        self.opaque = nn.ModuleList(opaque)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._function[0](*tensors)


INT8_LEVELS = 63
"""Inputs become whole numbers from minus this to this. Of a pair of products with weights up to 127 the sum must fit
16 bits, as CPUs without VNNI add them up."""
INT8_ZERO = 64
"""The unsigned number that stands for an input of 0."""


def can_multiply_int8() -> bool:
    """Whether torch has the kernels of `multiply_int8` on this CPU."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def pack_int8(weight: Tensor) -> Any:
    """`weight [out, in]` in int8, with a scale for each output, as FBGEMM multiplies by it; opaque."""
    scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch deprecates its quantised tensors in favour of torchao, which has no such layer for a CPU.
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantised, None)


def multiply_int8(x: Tensor, packed: Any) -> Tensor:
    """`x [..., in]`, numbers from -1 to 1, times a packed weight, in float32: `[..., out]`.

    The scale of the inputs is given. `quantized.linear_dynamic` would take it from all rows of `x`
    together, so that a row's output would depend on the other rows.
    """
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        x, 1 / INT8_LEVELS, INT8_ZERO, packed
    )
