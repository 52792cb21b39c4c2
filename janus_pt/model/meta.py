"""The model on the meta device: its modules and shapes, without memory for its numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.model.adapters import add_adapters
from janus_pt.model.layer_factory import PLAIN, Layers
from janus_pt.model.positions import restore_tables
from janus_pt.model.transformer import JanusTransformer


def build_on_meta(
    config: ModelConfig, adapter: AdapterConfig | None = None, layers: Layers = PLAIN
) -> JanusTransformer:
    """The model, with its adapters if it has any; every tensor is on the meta device.

    Nothing is allocated or drawn at random. Parameters carry their marks (`layer_factory.partition_dim`).
    """
    with torch.device("meta"):
        model = JanusTransformer(config, layers)
        if adapter is not None:
            add_adapters(model, adapter, layers)
    return model


def full_shapes(config: ModelConfig, adapter: AdapterConfig | None = None) -> dict[str, torch.Size]:
    """Shapes of all parameters of the unsharded model by name, adapters' included."""
    model = build_on_meta(config, adapter)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def assign_weights(model: JanusTransformer, state: Mapping[str, Tensor]) -> None:
    """Give a model from the meta device these very tensors (no copy), and its computed tables."""
    marks = {name: parameter.__dict__ for name, parameter in model.named_parameters()}
    model.load_state_dict(state, assign=True)
    for name, parameter in model.named_parameters():
        # The tensors are new parameters, which have none of the factory's marks.
        parameter.__dict__.update(marks[name])
    restore_tables(model, state["embed_tokens.weight"].dtype)
