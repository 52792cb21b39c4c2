"""Weights as a CPU likes them for decoding: laid out for few rows, packed for bfloat16, or in int8."""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor, nn

from janus_pt.model.transformer import JanusTransformer
from janus_pt.utils.errors import UserError

PROJECTION = "output_projection"
"""Names the weights that are a copy of the embedding's."""


ROWS = 16
"""Rows of input that packed weights are laid out for; they serve any number."""


class PackedLinear(nn.Linear):
    """A linear layer with a second copy of its weights in the blocks that oneDNN multiplies by."""

    packed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in_features]` to `[..., out_features]`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def lay_out_for_cpu(model: JanusTransformer) -> None:
    """Prepare linear weights for the few rows of a decoding step, in place; values and shapes stay.

    In float32 they are stored column by column: MKL's product is then up to twice as fast. In bfloat16 they are packed
    for oneDNN once and not at every call, where it has instructions for that: up to twice as fast again, and in
    batches several times float32. The output projection gets a copy of the embedding, whose rows must stay together.
    """
    model.output_projection = _output_projection(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
            if (
                module.weight.dtype == torch.bfloat16
                and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            ):
                _pack(module)


def _pack(layer: nn.Linear) -> None:
    layer.__class__ = PackedLinear
    cast(PackedLinear, layer).packed = torch.ops.mkldnn._reorder_linear_weight(
        layer.weight.detach().contiguous(), ROWS
    )


def quantize_int8(model: JanusTransformer) -> None:
    """Put torch's dynamically quantised layers (int8 weights, inputs quantised on the way) in place of all linear ones.

    The output projection becomes one of its own; the embedding it was tied to stays as it is. An input's scale is that
    of its whole batch, so outputs may differ a little with what else is decoded.

    Raises:
        UserError: the model is not float32 on a CPU.
    """
    weight = model.embed_tokens.get_parameter("weight")
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise UserError(
            'quantize: "int8" is for float32 on a CPU; leave out dtype and device, or quantize'
        )
    model.output_projection = _output_projection(model)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch deprecates it in favour of another package, which has no such layer
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def _output_projection(model: JanusTransformer) -> nn.Linear:
    """The embedding's weights as a layer."""
    weight = model.embed_tokens.get_parameter("weight")
    rows, hidden_size = weight.shape
    projection = nn.utils.skip_init(nn.Linear, hidden_size, rows, bias=False)
    projection.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return projection
