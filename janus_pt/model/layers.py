"""The small layer factory that blocks are written against, with torch's own layers as the default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

INIT_STD = 0.02


def init_weight(weight: Tensor) -> Tensor:
    """BERT's initialisation, N(0, 0.02), in place."""
    return nn.init.normal_(weight, std=INIT_STD)


def linear(input_size: int, output_size: int) -> nn.Linear:
    """A dense layer with `init_weight` and a zero bias."""
    layer = nn.utils.skip_init(nn.Linear, input_size, output_size)
    init_weight(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def embedding(rows: int, hidden_size: int) -> nn.Embedding:
    """An embedding table with `init_weight`."""
    return nn.Embedding(rows, hidden_size, _weight=init_weight(torch.empty(rows, hidden_size)))


@dataclass(frozen=True)
class Layers:
    """How the three kinds of sharded layers are made: `column` splits its output features over the tensor-parallel
    ranks, `row` its input features, `embedding` its rows. The default shards nothing."""

    column: Callable[[int, int], nn.Module] = linear
    row: Callable[[int, int], nn.Module] = linear
    embedding: Callable[[int, int], nn.Module] = embedding


PLAIN = Layers()
