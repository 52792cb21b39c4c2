"""New weights as a pure function of the seed and a parameter's name: the same model on every layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.model.adapters import FIRST, LAST, build_on_meta, is_adapter
from janus_pt.model.positions import SinusoidalPositions
from janus_pt.model.transformer import JanusTransformer

TakeShard = Callable[[nn.Parameter, Tensor], Tensor]
"""From a parameter and the whole tensor it is a part of: what the parameter should hold."""


def full_shapes(config: ModelConfig, adapter: AdapterConfig | None = None) -> dict[str, torch.Size]:
    """Shapes of all parameters of the unsharded model, by name; those of its adapters too, if it has any."""
    return {name: p.shape for name, p in build_on_meta(config, adapter).named_parameters()}


def draw(name: str, shape: torch.Size, init_std: float, seed: int) -> Tensor:
    """The new parameter `name`, float32: matrices and tables normal, LayerNorms one, biases zero.

    Adapters change nothing at first: their second matrix is zero. The first is uniform, as in LoRA's code.
    """
    part = name.split(".")[-2:-1]
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    if part and part[0] in LAST:
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    if part and part[0] in FIRST:
        bound = 1 / math.sqrt(shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return torch.empty(shape).normal_(std=init_std, generator=generator)


def initialize_weights(
    model: JanusTransformer, seed: int, part: TakeShard = lambda _, whole: whole
) -> None:
    """Give `model`, or the part of one that is there, the weights of `seed`."""
    shapes = full_shapes(model.config, model.adapter)
    set_weights(model, lambda name: draw(name, shapes[name], model.config.init_std, seed), part)


def load_weights(
    model: JanusTransformer, state: Mapping[str, Tensor], part: TakeShard = lambda _, whole: whole
) -> None:
    """Give `model`, or the part of one that is there, the weights of an unsharded state dict.

    Adapters that are not in it stay as they are.
    """
    set_weights(
        model, lambda name: None if is_adapter(name) and name not in state else state[name], part
    )


@torch.no_grad()
def set_weights(
    model: JanusTransformer, whole: Callable[[str], Tensor | None], part: TakeShard
) -> None:
    """Fill all parameters from the whole tensors that `whole` gives by name (None: no change), and computed tables."""
    for name, parameter in model.named_parameters():
        if (tensor := whole(name)) is not None:
            parameter.copy_(part(parameter, tensor))
    for module in model.modules():
        if isinstance(module, SinusoidalPositions):
            module.fill()
