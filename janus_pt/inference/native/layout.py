"""Let a model decode by the library."""

from __future__ import annotations

import torch
from torch import nn

from janus_pt.config.schema import ModelConfig
from janus_pt.inference.cpu import is_joined, join_projections, replace_linear
from janus_pt.inference.native.linear import NativeEmbedding, NativeLinear
from janus_pt.inference.native.passes import NativePasses
from janus_pt.inference.native.structures import ACTIVATIONS
from janus_pt.model.transformer import JanusTransformer
from janus_pt.utils.errors import UserError

HEAD_SIZES = 8
"""A head's size must be a multiple: so many numbers are computed at once."""


def unsupported(config: ModelConfig) -> list[tuple[str, str]]:
    """Keys of the model's shape for which the library has no form, and what it would take."""
    problems = []
    if config.positions == "rotary":
        problems.append(("model.positions", "a table of positions"))
    if config.embedding_projection:
        problems.append(("model.embedding_projection", "embeddings that are added"))
    if config.feed_forward != "plain":
        problems.append(("model.feed_forward", '"plain"'))
    if config.activation not in ACTIVATIONS:
        problems.append(("model.activation", f"one of {', '.join(ACTIVATIONS)}"))
    if config.key_value_heads != config.num_attention_heads:
        problems.append(("model.num_key_value_heads", "as many as there are heads"))
    if config.causal_self_attention:
        problems.append(("model.causal_self_attention", "one self-attention a layer"))
    if config.head_size % HEAD_SIZES:
        problems.append(("model.num_attention_heads", f"heads of {HEAD_SIZES}, 16, 24, … numbers"))
    return problems


def lay_out_natively(model: JanusTransformer, int8: bool = False) -> None:
    """Let the library compute the model's passes, and give it the model's weights, packed.

    The weights are in memory once: such a model can be decoded with, not trained, saved, moved or converted. With
    `int8` its linear layers have int8 weights, but not the length head; the embeddings stay float32.

    Raises:
        UserError: the model has parts that the library lacks, is not float32 on a CPU, or there is no
            C++ compiler.
    """
    weight = model.embed_tokens.get_parameter("weight")
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise UserError("native: is for float32 on a CPU; remove dtype and device, or native")
    if model.adapter is not None:
        raise UserError("native: adapters have no native form; leave native out")
    problems = unsupported(model.config)
    if problems:
        key, needed = problems[0]
        raise UserError(f"native: {key}: its native form takes {needed}; leave native out")
    model.requires_grad_(False)
    join_projections(model)
    # A list: layers are replaced on the way.
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or is_joined(model, name):
            continue
        # It is small, and a length that is wrong by one costs a whole output.
        if layer is not model.embed_length:
            replace_linear(model, name, NativeLinear(layer.weight, layer.bias, int8))
    projection = NativeLinear(weight, model.output_bias, int8)
    model.output_projection = projection
    if not int8:
        model.embed_tokens = NativeEmbedding(projection)
    model.native = NativePasses(model)
