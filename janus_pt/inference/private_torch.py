"""Parts of torch that are private or deprecated, each used in this one place.

tests/inference/test_private_torch.py fails with a clear message when one of them moves or changes.
"""

from __future__ import annotations

import warnings

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


def quantize_linear_layers(model: nn.Module) -> None:
    """Put layers with int8 weights in place of all `nn.Linear`, in place."""
    with warnings.catch_warnings():
        # torch deprecates it in favour of torchao, which has no such layer for a CPU.
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
