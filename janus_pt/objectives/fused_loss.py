"""Smoothed cross-entropies and symmetric KL divergences, fused with the output projection (METHOD
§3).

Hidden states and the (vocabulary-sharded) embedding go in; the weighted total and every term's sum
come out. Target tokens are walked in chunks, and gradients are made in the same walk: no [slots ×
vocabulary] tensor outlives a chunk.

For one target token let z_a be the logits of stream a, less their maximum, p_a the softmax of them,
and

    G_ab = E_{p_a}[z_b]                                              (one sum over the vocabulary for each a, b)

Then, with J_ab = ½[KL(p_a‖p_b) + KL(p_b‖p_a)] and Laplacian L of the graph whose edges are the
pairs, each with half its weight, everything about the pairs is linear in the streams:

    J_ab              =  ½ (G_aa - G_ab - G_ba + G_bb)               (the log-normalisers cancel)
    ∂(Σ w J) / ∂z_a   =  p_a ∘ ((L z)_a - Σ_b L_ab G_ab) + (L p)_a

Sums over the vocabulary are all that tensor-parallel ranks exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 1 << 25
"""Most logits of a chunk: bounds the walk's memory, three times as much (128 MiB in float32)."""
CPU_ELEMENTS, CPU_ROWS = 1 << 23, 256
"""On a CPU a chunk is smaller: matrix products gain no more, and caches hold less."""


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
    prefixes, or of two suffixes of the same length."""

    streams: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    label_smoothing: float = 0.0
    suffix_streams: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """`loss/STREAM` and `kl/A_B`, the order of all term vectors."""
        return (*(f"loss/{s}" for s in self.streams), *(f"kl/{a}_{b}" for a, b in self.pairs))


def fused_losses(
    hidden: Mapping[str, Tensor],
    weight: Tensor,
    targets: Tensor,
    coefficients: Tensor,
    terms: Terms,
    vocab: VocabShard,
) -> tuple[Tensor, Tensor]:
    """The weighted total (differentiable) and the sums over rows of every term (for reports).

    hidden: for each stream `[rows of the stream, hidden_size]`; weight: `[local vocabulary,
    hidden_size]`;
    targets: `[rows]`; coefficients: `[terms]`, in the order of `terms.names`. Both results are
    equal on all tensor-parallel ranks. All ranks of `vocab.group` take part."""
    streams = [hidden[name] for name in terms.streams]
    return _FusedLosses.apply(weight, targets, coefficients, terms, vocab, *streams)


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        targets: Tensor,
        coefficients: Tensor,
        terms: Terms,
        vocab: VocabShard,
        *hidden: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        real = weight[: max(0, min(len(weight), vocab.size - vocab.start))]
        mean = real.sum(0, dtype=dtype) / vocab.size
        coefficients = coefficients.to(dtype)
        sums, wanted = torch.zeros_like(coefficients), any(ctx.needs_input_grad)
        grad_weight = torch.zeros_like(weight, dtype=dtype) if wanted else None
        grad_hidden = [torch.zeros_like(h) for h in hidden]
        runs = list(
            _runs([len(h) for h in hidden], chunk_rows(len(real), weight.device.type == "cpu"))
        )
        longest = max(
            (len(streams) * (chunks[0].stop - chunks[0].start) for streams, chunks in runs),
            default=0,
        )
        scratch = torch.empty(3, longest, len(real), dtype=dtype, device=weight.device)
        for streams, chunks in runs:
            part = _Part.of(streams, coefficients, terms, vocab)
            for rows in chunks:
                inputs = torch.stack([hidden[s][rows] for s in streams], dim=1)
                logits, *free = (
                    s[: inputs[..., 0].numel()].view(*inputs.shape[:2], -1) for s in scratch
                )
                _product(inputs.flatten(0, 1), real.t(), logits.flatten(0, 1))
                grad = part.losses(
                    logits, free, inputs.to(dtype) @ mean, targets[rows], sums, wanted
                )
                if grad_weight is None:
                    continue
                grad = grad.to(weight.dtype).flatten(0, 1)
                for index, found in zip(
                    streams, part.weighted((grad @ real).view_as(inputs)).unbind(1), strict=True
                ):
                    grad_hidden[index][rows] = found
                _add_product(
                    grad_weight[: len(real)], grad.t(), part.weighted(inputs).flatten(0, 1)
                )
        if grad_weight is not None:
            shares = terms.label_smoothing * coefficients[: len(hidden)]
            _subtract_smoothing(
                shares, mean, hidden, grad_hidden, grad_weight[: len(real)], vocab.size
            )
            for grad in grad_hidden:
                vocab.reduce(grad)
            ctx.save_for_backward(grad_weight.to(weight.dtype), *grad_hidden)
        ctx.mark_non_differentiable(sums)
        return coefficients @ sums, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, *hidden = (grad * grads[0].to(grad.dtype) for grad in ctx.saved_tensors)
        return (weight, None, None, None, None, *hidden)


def _subtract_smoothing(
    shares: Tensor,
    mean: Tensor,
    hidden: Sequence[Tensor],
    grad_hidden: list[Tensor],
    grad_weight: Tensor,
    size: int,
) -> None:
    """Smoothing's part of the gradient: the same at every logit of a stream."""
    for share, grad, h in zip(shares.unbind(0), grad_hidden, hidden, strict=True):
        grad -= (share * mean).to(grad.dtype)
        grad_weight -= share / size * h.sum(0, dtype=shares.dtype)


def chunk_rows(vocab_rows: int, on_cpu: bool) -> int:
    """Rows of a chunk, all streams counted."""
    rows = max(1, (CPU_ELEMENTS if on_cpu else CHUNK_ELEMENTS) // max(1, vocab_rows))
    return min(rows, CPU_ROWS) if on_cpu else rows


def _runs(lengths: list[int], rows: int) -> Iterator[tuple[list[int], list[slice]]]:
    """Runs of target tokens that the same streams predict: those streams, and the run in chunks of
    `rows`."""
    first = 0
    while first < max(lengths):
        streams = [s for s, length in enumerate(lengths) if length > first]
        last = min(lengths[s] for s in streams)
        step = max(1, rows // len(streams))
        yield streams, [slice(start, min(start + step, last)) for start in range(first, last, step)]
        first = last


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """A product of matrices that may be of lower precision than `out`."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product of matrices that may be of lower precision."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


@dataclass(frozen=True)
class _Part:
    """The terms over some of the streams, for target tokens that all of these predict.

    `weight [streams]`, `laplacian [streams, streams]`; pairs as (number of the term, two places in
    `streams`)."""

    streams: list[int]
    pairs: list[tuple[int, int, int]]
    weight: Tensor
    laplacian: Tensor
    vocab: VocabShard
    smoothing: float

    @staticmethod
    def of(streams: list[int], coefficients: Tensor, terms: Terms, vocab: VocabShard) -> _Part:
        """The part for these streams."""
        place = {terms.streams[s]: i for i, s in enumerate(streams)}
        numbered = enumerate(terms.pairs, start=len(terms.streams))
        pairs = [(j, place[a], place[b]) for j, (a, b) in numbered if a in place and b in place]
        laplacian = coefficients.new_zeros(len(streams), len(streams))
        for j, a, b in pairs:
            half = 0.5 * coefficients[j]
            for row, column, value in ((a, a, half), (b, b, half), (a, b, -half), (b, a, -half)):
                laplacian[row, column] += (
                    value  # by numbers: a list of them would be copied to the device
                )
        weight = torch.stack([coefficients[s] for s in streams])
        return _Part(streams, pairs, weight, laplacian, vocab, terms.label_smoothing)

    def weighted(self, x: Tensor) -> Tensor:
        """`x [rows, streams, hidden]` with the factor that `losses` does not put in its gradient."""
        return x if self.pairs else x * self.weight.to(x.dtype)[:, None]

    def losses(
        self,
        logits: Tensor,
        free: list[Tensor],
        mean: Tensor,
        targets: Tensor,
        sums: Tensor,
        wanted: bool,
    ) -> Tensor:
        """Add the terms of `logits [rows, streams, local vocabulary]` to `sums`; the total's
        gradient by them, if wanted, but for smoothing's constant and, where there are no pairs, the
        factor `weight`.

        `mean [rows, streams]`: this rank's share of the logits' mean. Overwrites the logits and two
        `free` tensors like them."""
        vocab, smoothing = self.vocab, self.smoothing
        local = targets - vocab.start
        own = (local >= 0) & (local < logits.shape[-1])
        local = (local * own)[:, None, None].expand(-1, len(self.streams), 1)
        most = logits.amax(-1)
        highest = vocab.reduce(most.clone(), dist.ReduceOp.MAX)
        target = (logits.gather(-1, local)[..., 0] - highest) * own[:, None]
        p, shift = torch.softmax(logits, dim=-1, out=free[0]), most - highest
        share = shift.exp() / p.amax(-1)  # the most probable token's is 1 over the sum
        parts = [share, target, mean]
        if self.pairs:  # of logits less their highest, not of log p: J is a small difference
            logits -= most[..., None]
            moments = share[..., None] * (torch.bmm(p, logits.transpose(1, 2)) + shift[:, None])
            parts += moments.unbind(-1)
        total, target, mean, *expectations = vocab.reduce(torch.stack(parts)).unbind(0)
        expected = torch.stack(expectations or [total], -1) / total[..., None]
        self._add_terms(
            sums, total.log() - (1 - smoothing) * target - smoothing * (mean - highest), expected
        )
        if not wanted:
            return logits
        ratio, own_weight = share / total, (smoothing - 1) * own[:, None].to(total.dtype)
        if self.pairs:
            pull = self.weight + (self.laplacian * (shift[:, None] - expected)).sum(-1)
            grad = torch.bmm(ratio[..., None] * self.laplacian, logits, out=free[1]).mul_(p)
            p = grad.baddbmm_(self.laplacian * ratio[:, None] + torch.diag_embed(ratio * pull), p)
            own_weight = own_weight * self.weight
        elif vocab.group is not None:
            p *= ratio[..., None]
        return p.scatter_add_(-1, local, own_weight.expand_as(target)[..., None])

    def _add_terms(self, sums: Tensor, cross_entropies: Tensor, expected: Tensor) -> None:
        for stream, value in zip(self.streams, cross_entropies.sum(0).unbind(0), strict=True):
            sums[stream] += value
        summed = expected.sum(0)
        for j, a, b in self.pairs:
            sums[j] += 0.5 * (summed[a, a] - summed[a, b] - summed[b, a] + summed[b, b])
