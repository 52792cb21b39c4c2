"""From a model on the meta device to this rank's part of it in memory."""

from __future__ import annotations

import torch
from torch import nn

from janus_pt.model.layer_numbers import (
    SOURCE_EMBEDDING,
    head_layer,
    slot_embedding,
    table_layers,
)
from janus_pt.model.transformer import JanusTransformer

CPU = torch.device("cpu")


def drop_other_stages(model: JanusTransformer, layers: range) -> None:
    """Remove from `model` everything outside `layers`, numbered as in `model/layer_numbers.py`.

    Names of the remaining parameters do not change: a layer keeps its number in its stack.
    """
    config = model.config
    head = head_layer(config)
    # Each stack with the layer that embeds its input, and the layer that has its last norm.
    stacks = (
        (model.encoder, SOURCE_EMBEDDING, slot_embedding(config)),
        (model.decoder, slot_embedding(config), head),
    )
    for stack, embedding, last in stacks:
        if embedding not in layers:
            stack.embed_positions = nn.Identity()
            stack.layernorm_embedding = nn.Identity()
            stack.embed_projection = None
        for index, _ in list(stack.numbered()):
            if embedding + 1 + index not in layers:
                delattr(stack.layers, str(index))
        if last not in layers:
            stack.layer_norm = nn.Identity()
    if not set(table_layers(config)) & set(layers):
        model.embed_tokens = nn.Identity()
    if config.source_vocab_size is not None and SOURCE_EMBEDDING not in layers:
        del model.embed_source
    if head not in layers:
        del model.embed_length
        if config.output_bias:
            del model.output


def materialize(
    model: nn.Module, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> None:
    """Give every tensor of a model on the meta device uninitialised memory: parameters where and as
    they will be trained, computed tables, which the engine moves, on the CPU in float32."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty_like(parameter, device=device, dtype=dtype)
            owned = nn.Parameter(memory, parameter.requires_grad)
            # megatron-core marks sharded parameters by attributes, which `empty_like` does not copy.
            owned.__dict__.update(parameter.__dict__)
            setattr(module, name, owned)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device=CPU))
