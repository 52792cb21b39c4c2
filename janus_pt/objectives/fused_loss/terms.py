"""What the losses are of: a rank's part of the vocabulary, and the terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """The rows `[start, start + rows)` of the embedding that this rank holds; `size` real tokens in
    all.

    Rows at `size` and beyond pad the table: they get no probability and no gradient. `group` is the
    tensor-parallel group, or None for an unsharded table.
    """

    size: int
    start: int = 0
    group: dist.ProcessGroup | None = None

    def real_rows(self, weight: Tensor) -> Tensor:
        """This rank's rows of the output projection `weight`, without the rows that pad it."""
        return weight[: max(0, min(len(weight), self.size - self.start))]

    def reduce(self, value: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """All-reduce over the tensor-parallel ranks, in place."""
        if self.group is not None:
            dist.all_reduce(value, op=op, group=self.group)
        return value


@dataclass(frozen=True)
class Terms:
    """The loss terms: a cross-entropy for each of `streams`, a symmetric KL for each of `pairs` of
    them.

    Each stream predicts a *prefix* of one list of target tokens, so row i of every stream is the
    same token. Streams named in `suffix_streams` predict a suffix instead. A pair is of two
    prefixes, or of two suffixes of the same length. The slots of the `aligned_stream` have no
    tokens of their own: its term is the objective's `alignment_loss`."""

    streams: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    label_smoothing: float = 0.0
    suffix_streams: tuple[str, ...] = ()
    aligned_stream: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """`loss/STREAM` and `kl/A_B`, the order of all term vectors."""
        return (*(f"loss/{s}" for s in self.streams), *(f"kl/{a}_{b}" for a, b in self.pairs))


@dataclass(frozen=True)
class WalkResult:
    """The sums of the terms over rows `[terms]`, and the weighted total's gradients.

    grad_weight: in the dtype of the sums, like the weight; None where no gradients were asked for.
    grad_hidden: like the hidden states, stream by stream; empty then.
    """

    sums: Tensor
    grad_weight: Tensor | None
    grad_hidden: list[Tensor]


Walk = Callable[[list[Tensor], Tensor, Tensor, Tensor, Terms, VocabShard, bool], WalkResult]
"""A walk over the target tokens: hidden states of the streams, weight, targets, coefficients, terms,
vocabulary (all as in `fused_losses`), and whether gradients are needed."""
