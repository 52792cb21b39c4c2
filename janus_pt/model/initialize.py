"""New weights as a pure function of the seed and a parameter's name: the same model on every layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from janus_pt.config import ModelConfig
from janus_pt.model.janus import JanusTransformer
from janus_pt.model.positions import SinusoidalPositions

Part = Callable[[nn.Parameter, Tensor], Tensor]
"""From a parameter and the whole tensor it is a part of: what the parameter should hold."""


def whole_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shapes of all parameters of the unsharded model, by name."""
    with torch.device("meta"):
        return {name: p.shape for name, p in JanusTransformer(config).named_parameters()}


def draw(name: str, shape: torch.Size, init_std: float, seed: int) -> Tensor:
    """The new parameter `name`, float32: matrices and tables normal, LayerNorms one, biases zero."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.empty(shape).normal_(std=init_std, generator=generator)


def initialize_weights(model: JanusTransformer, seed: int, part: Part = lambda _, whole: whole) -> None:
    """Give `model`, or the part of one that is there, the weights of `seed`."""
    shapes = whole_shapes(model.config)
    set_weights(model, lambda name: draw(name, shapes[name], model.config.init_std, seed), part)


def load_weights(model: JanusTransformer, state: Mapping[str, Tensor], part: Part = lambda _, whole: whole) -> None:
    """Give `model`, or the part of one that is there, the weights of an unsharded state dict."""
    set_weights(model, state.__getitem__, part)


@torch.no_grad()
def set_weights(model: JanusTransformer, whole: Callable[[str], Tensor], part: Part) -> None:
    """Fill all parameters from the whole tensors that `whole` gives by name, and the computed tables."""
    for name, parameter in model.named_parameters():
        parameter.copy_(part(parameter, whole(name)))
    for module in model.modules():
        if isinstance(module, SinusoidalPositions):
            module.fill()
