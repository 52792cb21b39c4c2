"""The small layer factory that blocks are written against, and the one that shards nothing.

Every parameter that tensor-parallel ranks share out carries megatron-core's two marks,
`tensor_model_parallel` and `partition_dim`, whichever factory made it, and on the meta device too.
Whoever must know how a model is sharded reads them (`partition_dim`) and needs no list of names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from janus_pt.model.dropout import ALL_ROWS, RowShare


class MakeLinear(Protocol):
    """Makes a linear layer."""

    def __call__(self, inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        """A layer from `[..., inputs]` to `[..., outputs]`."""


def unchanged(x: Tensor) -> Tensor:
    """`copy_to_tp_region` and `scale_replicated_grad` where nothing is sharded."""
    return x


def all_rows(vocab_size: int) -> int:
    """`vocab_rows` where nothing is sharded."""
    return vocab_size


class Rows:
    """How tensor-parallel ranks share the rows of a packed row `[1, rows, ...]` outside of sharded layers.

    Here they do not: every rank has all rows.
    """

    active: bool = False
    """Whether they do now. Decoding has rows of another kind, which are never shared."""

    @property
    def share(self) -> RowShare:
        """The rows of this rank."""
        return ALL_ROWS

    def own(self, x: Tensor) -> Tensor:
        """This rank's rows of `x`, all of which every rank has."""
        return x

    def own_from(self, x: Tensor, first: int) -> Tensor:
        """This rank's rows of the slots from `first` on. `x` is this rank's rows of all slots."""
        # A slice of everything would cost a copy in the backward pass.
        return x[:, first:] if first else x

    def gather(self, x: Tensor) -> Tensor:
        """All rows of `x`, for what every rank computes identically: its gradient is not summed."""
        return x


ALONE = Rows()


@dataclass(frozen=True)
class Layers:
    """How the kinds of sharded layers are made, and what ranks do between them.

    `column` splits its output features over the tensor-parallel ranks, `row` its input features,
    `embedding` its rows. `column_without_reduce` is one of several columns that read the same input:
    the input goes through `copy_to_tp_region` first, which all-reduces its gradient once for all of
    them. Behind `copy_to_tp_region` gradients differ between ranks. What all ranks compute identically
    from there on is read through `scale_replicated_grad`: each rank keeps its share of that gradient,
    so that the all-reduce does not count it once a rank. Where ranks share `rows`, columns are given a
    rank's own and read all; `copy_to_tp_region` gathers them, and `copy_to_tp_layers` does for what many
    layers read. `column_of_all_rows` is a column that is given all rows. `tp_rng_fork` is the context for dropout
    between a column and a row layer, where each rank holds other features and must draw another mask.
    `vocab_rows` is the number of a vocabulary's rows on a rank, padding included.
    `tensor_parallel_size` is the number of ranks that share a layer.
    """

    column: MakeLinear
    column_without_reduce: MakeLinear
    column_of_all_rows: MakeLinear
    row: MakeLinear
    embedding: Callable[[int, int], nn.Module]
    copy_to_tp_region: Callable[[Tensor], Tensor] = unchanged
    copy_to_tp_layers: Callable[[Tensor], Tensor] = unchanged
    scale_replicated_grad: Callable[[Tensor], Tensor] = unchanged
    tp_rng_fork: Callable[[], AbstractContextManager[None]] = nullcontext
    vocab_rows: Callable[[int], int] = all_rows
    tensor_parallel_size: int = 1
    rows: Rows = ALONE


def mark_sharded(parameter: Any, dimension: int) -> None:
    """Mark a parameter as shared out along `dimension`; megatron-core's own marks stay as they are."""
    parameter.tensor_model_parallel = True
    parameter.partition_dim = dimension


def mark_copied_input(column: Any) -> None:
    """Mark a linear layer as one that reads behind `copy_to_tp_region`."""
    column.reads_copied_input = True


def mark_reads_all_rows(module: nn.Module) -> None:
    """Mark the parameters of a module that every rank holds, and that read all rows on every rank."""
    for parameter in module.parameters():
        parameter.reads_all_rows = True  # type: ignore[attr-defined]


def is_summed_over_rows(parameter: Tensor) -> bool:
    """Whether the gradient of a parameter is a sum over rows, of which a rank may have only its own."""
    reads_all_rows = getattr(parameter, "reads_all_rows", False)
    return partition_dim(parameter) is None and not reads_all_rows


def reads_copied_input(layer: nn.Module) -> bool:
    """Whether the input of a linear layer has gone through `copy_to_tp_region`."""
    return getattr(layer, "reads_copied_input", False)


def partition_dim(parameter: Tensor) -> int | None:
    """The dimension that tensor-parallel ranks share out; None if each rank holds all of it."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    dimension: int = parameter.partition_dim  # type: ignore[attr-defined]
    return dimension


def is_column(layer: nn.Module) -> bool:
    """Whether a linear layer's output features are shared out."""
    return partition_dim(layer.get_parameter("weight")) == 0


def _column(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
    layer = nn.Linear(inputs, outputs, bias)
    for parameter in layer.parameters():
        mark_sharded(parameter, 0)
    return layer


def _column_without_reduce(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
    layer = _column(inputs, outputs, bias)
    mark_copied_input(layer)
    return layer


def _row(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
    layer = nn.Linear(inputs, outputs, bias)
    # The bias is added after the ranks' sums are: each rank holds all of it.
    mark_sharded(layer.weight, 1)
    return layer


def _embedding(rows: int, hidden_size: int) -> nn.Module:
    table = nn.Embedding(rows, hidden_size)
    mark_sharded(table.weight, 0)
    return table


PLAIN = Layers(_column, _column_without_reduce, _column, _row, _embedding)
"""Torch's own layers: nothing is sharded."""
