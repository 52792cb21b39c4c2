"""The small layer factory that blocks are written against, and the one that shards nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


class MakeLinear(Protocol):
    """Makes a linear layer."""

    def __call__(self, inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        """A layer from `[..., inputs]` to `[..., outputs]`."""


def unchanged(x: Tensor) -> Tensor:
    """What `copy_to_tp_region` and `scale_replicated_grad` are where nothing is sharded."""
    return x


@dataclass(frozen=True)
class Layers:
    """How the kinds of sharded layers are made, and what ranks do between them.

    `column` splits its output features over the tensor-parallel ranks, `row` its input features,
    `embedding` its rows. `column_without_reduce` is one of several columns that read the same input:
    the input goes through `copy_to_tp_region` first, which all-reduces its gradient once for all of
    them. Behind `copy_to_tp_region` gradients differ between ranks. What all ranks compute identically
    from there on is read through `scale_replicated_grad`: each rank keeps its share of that gradient,
    so that the all-reduce does not count it once a rank. `tp_rng_fork` is the context for dropout
    between a column and a row layer, where each rank holds other features and must draw another mask.
    """

    column: MakeLinear
    column_without_reduce: MakeLinear
    row: MakeLinear
    embedding: Callable[[int, int], nn.Module]
    copy_to_tp_region: Callable[[Tensor], Tensor] = unchanged
    scale_replicated_grad: Callable[[Tensor], Tensor] = unchanged
    tp_rng_fork: Callable[[], AbstractContextManager[None]] = nullcontext


PLAIN = Layers(nn.Linear, nn.Linear, nn.Linear, nn.Embedding)
"""Torch's own layers: nothing is sharded."""
