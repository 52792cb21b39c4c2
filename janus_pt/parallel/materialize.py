"""The model of one rank: an outline of the whole, cut to this rank's layers and shards, then given memory."""

from __future__ import annotations

import torch
from torch import nn

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.model.initialize import initialize_weights
from janus_pt.model.meta import build_on_meta
from janus_pt.model.transformer import JanusTransformer
from janus_pt.parallel.parameters import table_layers
from janus_pt.parallel.tensor import local_shard, tensor_parallel_layers


def build_model(
    config: ModelConfig,
    seed: int,
    layers: range | None = None,
    adapter: AdapterConfig | None = None,
) -> JanusTransformer:
    """The part of the model that belongs to this rank, with the weights of `seed`: the same on any layout.

    `layers` are this rank's links of the chain (`stages`), None for all of them.
    """
    model = build_on_meta(config, adapter, tensor_parallel_layers())
    if layers is not None:
        drop_other_stages(model, layers)
    materialize(model)
    initialize_weights(model, seed, local_shard)
    return model


def drop_other_stages(model: JanusTransformer, layers: range) -> None:
    """Remove from `model` all that is not in `layers` of the chain."""
    config = model.config
    turn, head = config.encoder_layers + 1, config.encoder_layers + config.decoder_layers + 2
    for stack, embedding, last in ((model.encoder, 0, turn), (model.decoder, turn, head)):
        if embedding not in layers:
            stack.embed_positions, stack.layernorm_embedding = nn.Identity(), nn.Identity()
            stack.embed_projection = None
        for index, _ in list(stack.numbered()):
            if embedding + 1 + index not in layers:
                delattr(stack.layers, str(index))
        if last not in layers:
            stack.layer_norm = nn.Identity()
    if not set(table_layers(config)) & set(layers):
        model.embed_tokens = nn.Identity()
    if config.source_vocab_size is not None and 0 not in layers:
        del model.embed_source
    if head not in layers:
        del model.embed_length


def materialize(model: nn.Module) -> None:
    """Give every tensor of an outline memory on the CPU, uninitialised, parameters with the marks of their layers."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            owned = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
            owned.__dict__.update(parameter.__dict__)
            setattr(module, name, owned)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
