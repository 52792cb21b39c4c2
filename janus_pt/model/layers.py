"""The small layer factory that blocks are written against, and the one that shards nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn


@dataclass(frozen=True)
class Layers:
    """How the three kinds of sharded layers are made: `column` splits its output features over the tensor-parallel
    ranks, `row` its input features, `embedding` its rows. Weights are drawn from a normal distribution, biases 0."""

    column: Callable[[int, int], nn.Module]
    row: Callable[[int, int], nn.Module]
    embedding: Callable[[int, int], nn.Module]


def linear(input_size: int, output_size: int, init_std: float) -> nn.Linear:
    """A dense layer of torch's own."""
    layer = nn.utils.skip_init(nn.Linear, input_size, output_size, device=torch.get_default_device())
    nn.init.normal_(layer.weight, std=init_std)
    nn.init.zeros_(layer.bias)
    return layer


def embedding(rows: int, hidden_size: int, init_std: float) -> nn.Embedding:
    """An embedding table of torch's own."""
    return nn.Embedding(rows, hidden_size, _weight=torch.empty(rows, hidden_size).normal_(std=init_std))


def plain_layers(init_std: float) -> Layers:
    """Layers that shard nothing."""
    dense = partial(linear, init_std=init_std)
    return Layers(dense, dense, partial(embedding, init_std=init_std))
