"""Smoothed cross-entropies and symmetric KL divergences, fused with the output projection (METHOD §3).

Hidden states and the (vocabulary-sharded) embedding go in; the weighted total and every term's sum come out. Target
tokens are walked in chunks, and gradients are made in the same walk: no [slots × vocabulary] tensor outlives a chunk.

For one target token let z_a be the logits of stream a, less their maximum, p_a the softmax of them, and

    G_ab = E_{p_a}[z_b]                                              (one sum over the vocabulary for each a, b)

Then, with J_ab = ½[KL(p_a‖p_b) + KL(p_b‖p_a)] and Laplacian L of the graph whose edges are the pairs, each with half
its weight, everything about the pairs is linear in the streams:

    J_ab              =  ½ (G_aa - G_ab - G_ba + G_bb)               (the log-normalisers cancel)
    ∂(Σ w J) / ∂z_a   =  p_a ∘ ((L z)_a - Σ_b L_ab G_ab) + (L p)_a

Sums over the vocabulary are all that tensor-parallel ranks exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits of one chunk and stream: bounds the walk's memory (16 MiB in float32)."""


@dataclass(frozen=True)
class VocabShard:
    """The rows `[start, start + rows)` of the embedding that this rank holds; `size` real tokens in all.

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
    """The loss terms: a cross-entropy for each of `streams`, a symmetric KL for each of `pairs` of them.

    Each stream predicts a *prefix* of one list of target tokens, so row i of every stream is the same token.
    """

    streams: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    label_smoothing: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """`loss/STREAM` and `kl/A_B`, the order of all term vectors."""
        return (*(f"loss/{s}" for s in self.streams), *(f"kl/{a}_{b}" for a, b in self.pairs))


def fused_losses(
    hidden: Mapping[str, Tensor], weight: Tensor, targets: Tensor, coefficients: Tensor, terms: Terms, vocab: VocabShard
) -> tuple[Tensor, Tensor]:
    """The weighted total (differentiable) and the sums over rows of every term (for reports).

    hidden: for each stream `[rows of the stream, hidden_size]`; weight: `[local vocabulary, hidden_size]`;
    targets: `[rows]`; coefficients: `[terms]`, in the order of `terms.names`. Both results are equal on all
    tensor-parallel ranks. All ranks of `vocab.group` take part.
    """
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
        coefficients = coefficients.to(dtype)
        sums = torch.zeros_like(coefficients)
        wanted = any(ctx.needs_input_grad)
        grad_weight = torch.zeros_like(real, dtype=dtype) if wanted else None
        grad_hidden = [torch.zeros_like(h) for h in hidden]
        for rows, streams in _chunks([len(h) for h in hidden], len(real)):
            inputs = torch.stack([hidden[s][rows] for s in streams], dim=1)
            logits = (inputs @ real.t()).to(dtype)
            grad = _chunk_losses(logits, targets[rows], streams, sums, coefficients, terms, vocab, wanted)
            if grad_weight is None:
                continue
            grad = grad.to(weight.dtype)
            grad_weight += grad.flatten(0, 1).t() @ inputs.flatten(0, 1)
            for index, part in zip(streams, (grad @ real).unbind(1), strict=True):
                grad_hidden[index][rows] = part
        if grad_weight is not None:
            for grad in grad_hidden:
                vocab.reduce(grad)
            whole = torch.zeros_like(weight)
            whole[: len(real)] = grad_weight
            ctx.save_for_backward(whole, *grad_hidden)
        ctx.mark_non_differentiable(sums)
        return coefficients @ sums, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_weight, *grad_hidden = ctx.saved_tensors
        scale = grads[0].to(grad_weight.dtype)
        return (grad_weight * scale, None, None, None, None, *(h * scale for h in grad_hidden))


def _chunks(lengths: list[int], vocab_rows: int) -> Iterator[tuple[slice, list[int]]]:
    """Runs of target tokens with the streams that predict all of them."""
    first = 0
    while first < max(lengths):
        streams = [s for s, length in enumerate(lengths) if length > first]
        rows = max(1, CHUNK_ELEMENTS // (max(1, vocab_rows) * len(streams)))
        last = min(first + rows, *(lengths[s] for s in streams))
        yield slice(first, last), streams
        first = last


def _chunk_losses(
    logits: Tensor,
    targets: Tensor,
    streams: list[int],
    sums: Tensor,
    coefficients: Tensor,
    terms: Terms,
    vocab: VocabShard,
    wanted: bool,
) -> Tensor:
    """Add the terms of `logits [rows, streams, local vocabulary]` to `sums`; the total's gradient by them, if wanted.

    Overwrites the logits.
    """
    smoothing, size = terms.label_smoothing, vocab.size
    logits -= vocab.reduce(logits.amax(-1), dist.ReduceOp.MAX)[..., None]
    p = logits.exp()
    local = targets - vocab.start
    own = (local >= 0) & (local < logits.shape[-1])
    local = (local * own)[:, None, None].expand(-1, len(streams), 1)
    target = logits.gather(-1, local)[..., 0] * own[:, None]
    mean = logits.sum(-1) / size if smoothing else torch.zeros_like(target)
    moments = torch.bmm(p, logits.transpose(1, 2)).unbind(-1)
    total, target, mean, *expectations = vocab.reduce(torch.stack((p.sum(-1), target, mean, *moments))).unbind(0)
    expected = torch.stack(expectations, -1) / total[..., None]

    count = len(terms.streams)
    sums[streams] += (total.log() - (1 - smoothing) * target - smoothing * mean).sum(0)
    laplacian = logits.new_zeros(len(streams), len(streams))
    for j, (a, b) in enumerate(_active_pairs(terms, streams), start=count):
        if a is None or b is None:
            continue
        gap = expected[:, a, a] - expected[:, a, b] - expected[:, b, a] + expected[:, b, b]
        sums[j] += 0.5 * gap.sum()
        laplacian[[a, b], [a, b]] += 0.5 * coefficients[j]
        laplacian[[a, b], [b, a]] -= 0.5 * coefficients[j]
    if not wanted:
        return logits
    p /= total[..., None]
    weight = coefficients[streams]
    pull = weight - (laplacian * expected).sum(-1)
    if len(streams) == 1:
        grad = p * pull[..., None]
    else:
        grad = (laplacian @ logits).add_(pull[..., None]).mul_(p).add_(laplacian @ p)
    if smoothing:
        grad -= (smoothing / size * weight)[:, None]
    return grad.scatter_add_(-1, local, ((smoothing - 1) * weight * own[:, None])[..., None])


def _active_pairs(terms: Terms, streams: list[int]) -> Iterator[tuple[int | None, int | None]]:
    """The pairs as places in `streams`; None for a stream that is not there."""
    place = {terms.streams[s]: i for i, s in enumerate(streams)}
    return ((place.get(a), place.get(b)) for a, b in terms.pairs)
