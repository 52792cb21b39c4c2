"""Sequence parallelism (Korthikanti et al. 2022): between sharded layers tensor-parallel ranks share
the rows of the packed row, so that norms, residuals, dropout and what they keep are of a part.

Where a rank held all rows and all-reduced, rows are gathered before columns and sums scattered after
rows' products. A packed row's sections are multiples of `ROW_STEP`, which ranks must divide.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor, nn

from janus_pt.model.dropout import ALL_ROWS, RowShare
from janus_pt.model.layer_factory import Rows, is_summed_over_rows
from janus_pt.model.recompute import is_recomputed


class SharedRows(Rows):
    """Tensor-parallel ranks share rows evenly, in their order, while this is `active`."""

    active = True

    @property
    def share(self) -> RowShare:
        """The rows of this rank."""
        if not self.active:
            return ALL_ROWS
        rank = parallel_state.get_tensor_model_parallel_rank()
        return RowShare(rank, parallel_state.get_tensor_model_parallel_world_size())

    def own(self, x: Tensor) -> Tensor:
        """This rank's rows of `x`, all of which every rank has."""
        return self.share.own(x)

    def own_from(self, x: Tensor, first: int) -> Tensor:
        """This rank's rows of the slots from `first` on. `x` is this rank's rows of all slots."""
        if not self.active or not first:
            return super().own_from(x, first)
        # Other ranks have some of them.
        every: Tensor = _GatherRows.apply(x)
        return self.own(every[:, first:])

    def gather(self, x: Tensor) -> Tensor:
        """All rows of `x`, for what every rank computes identically: its gradient is not summed."""
        every: Tensor = _GatherIdentical.apply(x, self.share) if self.active else x
        return every

    def enter(self, x: Tensor) -> Tensor:
        """All rows of `x` for the columns of one layer (`linear`), which need not keep them."""
        if not self.active:
            return x
        every: Tensor = _GatherRows.apply(x)
        # Inside a recomputation nothing is kept anyway: gathering once more would be for nothing.
        if torch.is_grad_enabled() and not is_recomputed():
            every.own_rows = OwnRows(x.detach())  # type: ignore[attr-defined]
        return every

    def enter_layers(self, x: Tensor) -> Tensor:
        """All rows of `x` for the columns of many layers, which all keep this one tensor."""
        every: Tensor = _GatherRows.apply(x) if self.active else x
        return every

    def leave(self, partial: Tensor) -> Tensor:
        """This rank's rows of the sum over the ranks of `partial`, which has all rows."""
        own: Tensor = _ScatterSums.apply(partial)
        return own


class OwnRows:
    """What was gathered: this rank's rows, from which the backward pass gathers them again."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.again = GatheredAgain()


class GatheredAgain:
    """All rows in the backward pass, gathered once for all columns that read them.

    It has no tensor between the passes: what autograd keeps is the columns' own.
    """

    def __init__(self) -> None:
        self._readers = 0
        self._every: Tensor | None = None
        self._pending: Any = None

    def add_reader(self) -> None:
        """Count a column that will call `begin` and `end`."""
        self._readers += 1

    def begin(self, own: Tensor) -> None:
        """Start gathering, unless another column did."""
        if self._every is None:
            self._every, self._pending = _start_gather(own)

    def end(self) -> Tensor:
        """All rows, when they are there; given up after the last column."""
        if self._pending is not None:
            self._pending.wait()
        every = self._every
        assert every is not None
        self._pending = None
        self._readers -= 1
        if self._readers <= 0:
            self._every = None
        return every


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of rows that `SharedRows.enter` gathered, or of some of them one after another.

    For the weight's gradient autograd keeps this rank's rows alone, and gathers them again.
    """
    whole = x if x._base is None else x._base
    own: OwnRows | None = getattr(whole, "own_rows", None)
    # A frozen weight's backward pass does not read the rows.
    if own is None or not weight.requires_grad:
        return F.linear(x, weight, bias)
    output: Tensor = _LinearOfGathered.apply(x, weight, bias, own.rows, own.again)
    return output


class _LinearOfGathered(torch.autograd.Function):
    """A product with gathered rows that keeps this rank's alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        own: Tensor,
        again: GatheredAgain,
    ) -> Tensor:
        """The product with all rows, `x [1, rows, inputs]`; `own` and `again` give them back in the backward pass."""
        ctx.save_for_backward(own, weight)
        ctx.again, ctx.rows = again, x.shape[1]
        ctx.first = x.storage_offset() // x.shape[2]
        ctx.has_bias = bias is not None
        again.add_reader()
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `x`, the weight and the bias."""
        own, weight = ctx.saved_tensors
        # Rows are on their way while the input's gradient is computed.
        ctx.again.begin(own)
        grad_x = gradient @ weight
        x = ctx.again.end().narrow(1, ctx.first, ctx.rows)
        by_row = gradient.flatten(0, 1)
        grad_weight = by_row.t() @ x.flatten(0, 1)
        grad_bias = by_row.sum(0) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias, None, None


class _GatherRows(torch.autograd.Function):
    """All rows; gradients, which differ between ranks, are summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _scatter_sums(gradient)


class _GatherIdentical(torch.autograd.Function):
    """All rows; gradients are identical on all ranks, and each takes its rows of them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, share: RowShare) -> Tensor:
        ctx.share = share
        return _gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # A copy: the view would keep the gradients of all rows in memory.
        return ctx.share.own(gradient).clone(), None


class _ScatterSums(torch.autograd.Function):
    """This rank's rows of the sums over the ranks; gradients of all rows are gathered."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor) -> Tensor:
        return _scatter_sums(partial)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _gather(gradient)


def _gather(own: Tensor) -> Tensor:
    every, pending = _start_gather(own)
    pending.wait()
    return every


def _start_gather(own: Tensor) -> tuple[Tensor, Any]:
    """All rows `[1, rows, ...]`, and the work that fills them."""
    group = parallel_state.get_tensor_model_parallel_group()
    assert len(own) == 1, "ranks share the rows of one packed row"
    every = own.new_empty((1, own.shape[1] * dist.get_world_size(group), *own.shape[2:]))
    # Ranks' rows stand one behind the other in memory, since there is one packed row.
    pending = dist.all_gather_into_tensor(every[0], own.contiguous()[0], group=group, async_op=True)
    return every, pending


def _scatter_sums(partial: Tensor) -> Tensor:
    group = parallel_state.get_tensor_model_parallel_group()
    assert len(partial) == 1, "ranks share the rows of one packed row"
    own = partial.new_empty((1, partial.shape[1] // dist.get_world_size(group), *partial.shape[2:]))
    dist.reduce_scatter_tensor(own[0], partial.contiguous()[0], group=group)
    return own


def sum_gradients_over_rows(model: nn.Module) -> None:
    """Have the backward pass sum the gradients of parameters that every rank applies to its own rows."""
    for parameter in model.parameters():
        if is_summed_over_rows(parameter):
            parameter.register_hook(_sum)


def _sum(gradient: Tensor) -> Tensor:
    # A copy: autograd may hold this one for others.
    total = gradient.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=parallel_state.get_tensor_model_parallel_group())
    return total
