"""Weights as a CPU likes them for decoding: laid out for few rows, or in int8."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from janus_pt.errors import UserError
from janus_pt.model.janus import JanusTransformer

PROJECTION = "output_projection"
"""Names the weights that are a copy of the embedding's."""


def lay_out_for_cpu(model: JanusTransformer) -> None:
    """Store linear weights column by column, in place; values and shapes stay.

    With the few rows of a decoding step, MKL's product is then up to twice as fast. The output projection gets a copy
    of the embedding, whose rows must stay together.
    """
    model.output_projection = _output_projection(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()


def quantize_int8(model: JanusTransformer) -> None:
    """Put torch's dynamically quantised layers (int8 weights, inputs quantised on the way) in place of all linear ones.

    The output projection becomes one of its own; the embedding it was tied to stays as it is. An input's scale is that
    of its whole batch, so outputs may differ a little with what else is decoded.

    Raises:
        UserError: the model is not float32 on a CPU.
    """
    weight = model.embed_tokens.get_parameter("weight")
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise UserError('quantize: "int8" is for float32 on a CPU; leave out dtype and device, or quantize')
    model.output_projection = _output_projection(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it in favour of another package, which has no such layer
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def _output_projection(model: JanusTransformer) -> nn.Linear:
    """The embedding's weights as a layer."""
    weight = model.embed_tokens.get_parameter("weight")
    rows, hidden_size = weight.shape
    projection = nn.utils.skip_init(nn.Linear, hidden_size, rows, bias=False)
    projection.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return projection
