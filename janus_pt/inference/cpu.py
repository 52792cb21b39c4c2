"""The layout of weights for decoding on a CPU: column by column, packed for bfloat16, or int8."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from janus_pt.inference.private_torch import (
    can_pack_bfloat16,
    linear_with_packed_weight,
    pack_weight,
    quantize_linear_layers,
)
from janus_pt.model.transformer import JanusTransformer
from janus_pt.utils.errors import UserError

PROJECTION = "output_projection"
"""Name of the layer whose weights are a copy of the embedding's."""
PACKED_ROWS = 16
"""Rows of input that packed weights are laid out for; they serve any number."""


class PackedLinear(nn.Linear):
    """A linear layer with a second copy of its weights, packed for oneDNN.

    `weight` stays: it is what is saved.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Take the place of `layer`: its parameters, its children and its forward hooks."""
        # The meta device: nothing is allocated for parameters that are replaced at once.
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight = layer.weight
        self.bias = layer.bias
        self.training = layer.training
        # A bottleneck adapter is a child of the layer that it follows, and runs by a hook.
        for name, child in layer.named_children():
            self.add_module(name, child)
        for hook in layer._forward_hooks.values():
            self.register_forward_hook(hook)
        # No buffer: a buffer would be saved, and moved or converted with the model.
        self._packed = pack_weight(layer.weight.detach().contiguous(), PACKED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in_features]` to `[..., out_features]`."""
        return linear_with_packed_weight(x, self._packed, self.bias)


def lay_out_for_cpu(model: JanusTransformer) -> None:
    """Prepare linear weights for the few rows of a decoding step, in place; values and shapes stay.

    In float32 they are stored column by column: MKL's product is then up to twice as fast. In
    bfloat16 they are packed for oneDNN once and not at every call, where the CPU has instructions
    for it: up to twice as fast again, and in batches several times float32.
    """
    # The embedding's rows must stay together, so the output projection gets a copy of them.
    model.output_projection = _output_projection(model)
    # A list: layers are replaced on the way.
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        layer.weight.data = layer.weight.data.t().contiguous().t()
        if layer.weight.dtype == torch.bfloat16 and can_pack_bfloat16():
            model.set_submodule(name, PackedLinear(layer))


def quantize_int8(model: JanusTransformer) -> None:
    """Replace all linear layers by torch's dynamically quantised ones.

    Weights are int8, inputs are quantised on the way. The output projection becomes a layer of its
    own; the embedding it was tied to stays as it is. All inputs of a batch share a scale, so
    outputs may differ a little with the other inputs of the batch.

    Raises:
        UserError: the model is not float32 on a CPU.
    """
    weight = model.embed_tokens.get_parameter("weight")
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise UserError(
            'quantize: "int8" is for float32 on a CPU; remove dtype and device, or quantize'
        )
    model.output_projection = _output_projection(model)
    quantize_linear_layers(model)


def _output_projection(model: JanusTransformer) -> nn.Linear:
    """The embedding's weights as a linear layer."""
    weight = model.embed_tokens.get_parameter("weight")
    vocab_size, hidden_size = weight.shape
    # Not initialised: its weight is replaced at once.
    bias = model.output_bias
    has_bias = bias is not None
    projection = nn.utils.skip_init(nn.Linear, hidden_size, vocab_size, bias=has_bias)
    projection.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        projection.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return projection
