"""New weights as a pure function of the seed and a parameter's name: the same model on every layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from janus_pt.model.adapters import FIRST, LAST, is_adapter
from janus_pt.model.meta import full_shapes
from janus_pt.model.positions import fill_tables
from janus_pt.model.transformer import JanusTransformer

TakeShard = Callable[[nn.Parameter, Tensor], Tensor]
"""From a parameter and the whole tensor it is a part of: the part that the parameter holds."""


def take_all(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """The part of an unsharded parameter: all of it."""
    return whole


def draw(name: str, shape: torch.Size, init_std: float, seed: int) -> Tensor:
    """The new parameter `name`, float32: matrices and tables normal, norms one, biases zero.

    Adapters change nothing at first: their second matrix is zero. The first is uniform, as in LoRA's code.
    """
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    *_, module, _ = ("", *name.split("."))
    if module in LAST:
        return torch.zeros(shape)
    # By name, not one after another: other parameters, or other ranks, change nothing.
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    if module in FIRST:
        bound = 1 / math.sqrt(shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return torch.empty(shape).normal_(std=init_std, generator=generator)


def initialize_weights(
    model: JanusTransformer, seed: int, take_shard: TakeShard = take_all
) -> None:
    """Give `model`, or the part of one that is here, the weights of `seed`."""
    shapes = full_shapes(model.config, model.adapter)
    init_std = model.config.init_std
    set_weights(model, lambda name: draw(name, shapes[name], init_std, seed), take_shard)


def load_weights(
    model: JanusTransformer, state: Mapping[str, Tensor], take_shard: TakeShard = take_all
) -> None:
    """Give `model`, or the part of one that is here, the weights of an unsharded state dict.

    Adapters that are not in it stay as they are.
    """

    def whole(name: str) -> Tensor | None:
        # A plain model's weights are given to one that has new adapters; anything else must be there.
        return state.get(name) if is_adapter(name) else state[name]

    set_weights(model, whole, take_shard)


@torch.no_grad()
def set_weights(
    model: JanusTransformer, whole: Callable[[str], Tensor | None], take_shard: TakeShard
) -> None:
    """Fill all parameters from the whole tensors that `whole` gives by name (None: no change), and computed tables."""
    for name, parameter in model.named_parameters():
        tensor = whole(name)
        if tensor is not None:
            parameter.copy_(take_shard(parameter, tensor))
    fill_tables(model)
