"""int8 weights for decoding on a CPU."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from janus_pt.errors import UserError
from janus_pt.model.janus import JanusTransformer


def quantize_int8(model: JanusTransformer) -> JanusTransformer:
    """Put torch's dynamically quantised layers (int8 weights, inputs quantised on the way) in place of all linear ones.

    The output projection becomes one of its own; the embedding it was tied to stays as it is. An input's scale is that
    of its whole batch, so outputs may differ a little with what else is decoded.

    Raises:
        UserError: the model is not float32 on a CPU.
    """
    weight = model.embed_tokens.get_parameter("weight")
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise UserError('quantize: "int8" is for float32 on a CPU; leave out dtype and device, or quantize')
    rows, hidden_size = weight.shape
    projection = nn.Linear(hidden_size, rows, bias=False)
    projection.weight = nn.Parameter(weight.detach(), requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it in favour of another package, which has no such layer
        model.output_projection = projection
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
