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
    """What `enter` and `alike` are where nothing is sharded."""
    return x


@dataclass(frozen=True)
class Layers:
    """How the kinds of sharded layers are made, and what ranks do between them.

    `column` splits its output features over the tensor-parallel ranks, `row` its input features, `embedding` its rows.
    `shared_column` is one of several columns that read the same: what these read goes through `enter` first, which adds
    up its gradient once for all of them. Behind `enter` gradients differ between ranks; what all ranks compute alike
    from there reads through `alike`, so that its gradient is not added up as often as there are ranks. `apart` is the
    context for dropout between a column and a row layer, where each rank holds something else and must not drop out
    what the others do.
    """

    column: MakeLinear
    shared_column: MakeLinear
    row: MakeLinear
    embedding: Callable[[int, int], nn.Module]
    enter: Callable[[Tensor], Tensor] = unchanged
    alike: Callable[[Tensor], Tensor] = unchanged
    apart: Callable[[], AbstractContextManager[None]] = nullcontext


PLAIN = Layers(nn.Linear, nn.Linear, nn.Linear, nn.Embedding)
"""Torch's own layers: nothing is sharded."""
