"""The walk on CUDA: products that return float32, and two Triton kernels a chunk.

Products of bfloat16 matrices accumulate in float32 and are kept so: neither logits nor a chunk's part
of the table's gradient are rounded. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from janus_pt.objectives.fused_loss import launch
from janus_pt.objectives.fused_loss.chunks import Run, chunk_rows, runs
from janus_pt.objectives.fused_loss.launch import Plan
from janus_pt.objectives.fused_loss.terms import Terms, VocabShard, WalkResult

ROW_MULTIPLE = 64
"""Rows of logits are stored in multiples of this many columns: loads of 16 bytes and the matrix
units need aligned rows, whatever the vocabulary's size."""


def walk(
    hidden: list[Tensor],
    weight: Tensor,
    targets: Tensor,
    coefficients: Tensor,
    terms: Terms,
    vocab: VocabShard,
    needs_gradient: bool,
) -> WalkResult:
    """The terms and their gradients; see `terms.Walk`."""
    dtype = coefficients.dtype
    # Padding rows are in no product, so they get no probability and no gradient.
    real = vocab.real_rows(weight)
    grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_gradient else None
    grad_hidden = [torch.empty_like(states) for states in hidden] if needs_gradient else []
    lengths = [len(states) for states in hidden]
    chunked = list(runs(lengths, chunk_rows(len(real), on_cpu=False)))
    logits = _logits_memory(chunked, len(real), dtype, weight.device)
    # A gradient of the logits' own dtype takes their place.
    gradient = logits
    if needs_gradient and weight.dtype != dtype:
        gradient = torch.empty_like(logits, dtype=weight.dtype)
    block_sums = [coefficients.new_zeros(0, len(terms.names))]
    for streams, chunks in chunked:
        run = _RunSums(streams, chunks, coefficients, terms, vocab)
        for rows in chunks:
            inputs = _stack(hidden, streams, rows)
            flat_inputs = inputs.flatten(0, 1)
            own_logits = logits[: len(flat_inputs), : len(real)]
            _product(flat_inputs, real.t(), own_logits)
            run.sum_rows(own_logits, targets, rows)
            if grad_weight is None:
                continue
            grad_logits = gradient[: len(flat_inputs), : len(real)]
            run.write_gradient(own_logits, targets, rows, grad_logits)
            grad_inputs = (grad_logits @ real).view_as(inputs)
            for stream, grad in zip(streams, grad_inputs.unbind(1), strict=True):
                grad_hidden[stream][rows] = grad
            _add_product(grad_weight[: len(real)], grad_logits.t(), flat_inputs)
        block_sums.append(run.sum_terms(targets))
    return WalkResult(torch.cat(block_sums).sum(0), grad_weight, grad_hidden)


def make_plan(streams: Sequence[int], terms: Terms, vocab_size: int) -> Plan:
    """What kernels compute for some of the streams: their cross-entropies, and the pairs among them."""
    index = {terms.streams[stream]: i for i, stream in enumerate(streams)}
    numbers, first, second = [], [], []
    for number, (a, b) in enumerate(terms.pairs, start=len(terms.streams)):
        if a in index and b in index:
            numbers.append(number)
            first.append(index[a])
            second.append(index[b])
    smoothing = terms.label_smoothing
    return Plan(
        tuple(streams),
        tuple(numbers),
        tuple(first),
        tuple(second),
        smoothing,
        smoothing / vocab_size,
    )


class _RunSums:
    """What a run's rows have summed over the vocabulary."""

    def __init__(
        self,
        streams: list[int],
        chunks: list[slice],
        coefficients: Tensor,
        terms: Terms,
        vocab: VocabShard,
    ) -> None:
        self.coefficients = coefficients
        self.vocab = vocab
        self.plan = make_plan(streams, terms, vocab.size)
        self.first_row = chunks[0].start
        num_rows = chunks[-1].stop - self.first_row
        self.highest = coefficients.new_empty(num_rows, len(streams))
        self.sums = coefficients.new_empty(num_rows, self.plan.num_sums)

    def sum_rows(self, logits: Tensor, targets: Tensor, rows: slice) -> None:
        """Fill in a chunk's rows. All ranks of the vocabulary's group take part."""
        vocab = self.vocab
        highest, sums = self._of(rows)
        launch.sum_rows(logits, targets[rows], highest, sums, vocab.start, self.plan)
        if vocab.group is None:
            return
        own_highest = highest.clone()
        vocab.reduce(highest, dist.ReduceOp.MAX)
        launch.to_shared_highest(sums, own_highest, highest, self.plan)
        vocab.reduce(sums)

    def write_gradient(
        self, logits: Tensor, targets: Tensor, rows: slice, gradient: Tensor
    ) -> None:
        """The weighted total's gradient by a chunk's logits."""
        highest, sums = self._of(rows)
        launch.write_gradient(
            logits,
            targets[rows],
            highest,
            sums,
            self.coefficients,
            gradient,
            self.vocab.start,
            self.plan,
        )

    def sum_terms(self, targets: Tensor) -> Tensor:
        """The terms of all rows in blocks, `[blocks, terms]`."""
        own_targets = targets[self.first_row : self.first_row + len(self.sums)]
        blocks = -(-len(self.sums) // launch.TERM_ROWS)
        terms = self.coefficients.new_zeros(blocks, len(self.coefficients))
        launch.sum_terms(own_targets, self.sums, self.highest, terms, self.plan)
        return terms

    def _of(self, rows: slice) -> tuple[Tensor, Tensor]:
        here = slice(rows.start - self.first_row, rows.stop - self.first_row)
        return self.highest[here], self.sums[here]


def _logits_memory(
    chunked: Sequence[Run], vocab_rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Memory for the logits of the largest chunk: taken once, not for each chunk."""
    longest = 0
    for streams, chunks in chunked:
        first_chunk = chunks[0]
        longest = max(longest, len(streams) * (first_chunk.stop - first_chunk.start))
    row_stride = -(-vocab_rows // ROW_MULTIPLE) * ROW_MULTIPLE
    return torch.empty(longest, row_stride, dtype=dtype, device=device)


def _stack(hidden: Sequence[Tensor], streams: Sequence[int], rows: slice) -> Tensor:
    """`[rows, streams, hidden]`; without a copy where there is one stream."""
    if len(streams) == 1:
        return hidden[streams[0]][rows, None]
    return torch.stack([hidden[stream][rows] for stream in streams], dim=1)


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """A product of matrices that may be of lower precision than `out`."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product of matrices that may be of lower precision."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
