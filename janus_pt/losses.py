"""Smoothed cross-entropies and symmetric KL divergences, fused with the output projection (METHOD §3).

Hidden states and the (vocabulary-sharded) embedding go in; the weighted total and every term's sum come out. Rows
are walked in chunks, and gradients are made in the same walk, so no [slots × vocabulary] tensor outlives a chunk.

With logits z sharded over the vocabulary, only sums over v of a few products cross ranks:

    -log p_t              =  lse - z_t
    mean_v(-log p_v)      =  lse - mean_v z_v
    KL(p‖q) + KL(q‖p)     =  E_p[Δ] - E_q[Δ],   Δ = z^p - z^q
    ∂/∂z^p of that        =  p∘(Δ - E_p[Δ]) + (p - q)
"""

from __future__ import annotations

from collections.abc import Mapping
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
        ctx: Any, weight: Tensor, targets: Tensor, coefficients: Tensor, terms: Terms, vocab: VocabShard, *hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        real = weight[: max(0, min(len(weight), vocab.size - vocab.start))]
        coefficients = coefficients.to(dtype)
        sums = torch.zeros_like(coefficients)
        wanted = any(ctx.needs_input_grad)
        grad_weight = torch.zeros_like(weight, dtype=dtype) if wanted else None
        grad_hidden = [torch.zeros_like(h) for h in hidden] if wanted else []
        rows = max(1, CHUNK_ELEMENTS // max(1, len(real)))
        for first in range(0, len(targets), rows):
            chunk = _Chunk.project(hidden, real, targets, slice(first, first + rows), dtype)
            grad_logits = chunk.losses(sums, coefficients, terms, vocab, wanted)
            if grad_weight is None:
                continue
            for stream, part in enumerate(grad_logits):
                part = part.to(weight.dtype)
                inputs = hidden[stream][first : first + rows]
                grad_hidden[stream][first : first + rows] = part @ real
                grad_weight[: len(real)] += part.t() @ inputs
        for grad in grad_hidden:
            vocab.reduce(grad)
        if grad_weight is not None:
            ctx.save_for_backward(grad_weight.to(weight.dtype), *grad_hidden)
        ctx.mark_non_differentiable(sums)
        return coefficients @ sums, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_weight, *grad_hidden = ctx.saved_tensors
        return (grad_weight * grads[0], None, None, None, None, *(h * grads[0].to(h.dtype) for h in grad_hidden))


@dataclass
class _Chunk:
    """Logits of the same few target tokens under every stream, `[rows of the stream, local vocabulary]` each."""

    logits: list[Tensor]
    targets: Tensor

    @classmethod
    def project(
        cls, hidden: tuple[Tensor, ...], weight: Tensor, targets: Tensor, rows: slice, dtype: torch.dtype
    ) -> _Chunk:
        return cls([(h[rows] @ weight.t()).to(dtype) for h in hidden], targets[rows])

    def losses(
        self, sums: Tensor, coefficients: Tensor, terms: Terms, vocab: VocabShard, wanted: bool
    ) -> list[Tensor]:
        """Add this chunk to the terms' `sums`; returns the total's gradient by the logits (if `wanted`)."""
        index = {name: i for i, name in enumerate(terms.streams)}
        pairs = [(index[a], index[b]) for a, b in terms.pairs]
        maxima = _split(vocab.reduce(torch.cat([z.amax(1) for z in self.logits]), dist.ReduceOp.MAX), self.logits)
        weights = [(z - m[:, None]).exp_() for z, m in zip(self.logits, maxima, strict=True)]
        own, local = self._local_targets(vocab)
        partial = [
            torch.stack((w.sum(1), z.gather(1, local[: len(z), None])[:, 0] * own[: len(z)], z.sum(1)))
            for w, z in zip(weights, self.logits, strict=True)
        ]
        deltas = [_difference(self.logits[a], self.logits[b]) for a, b in pairs]
        moments = [
            torch.stack(((weights[a][: len(d)] * d).sum(1), (weights[b][: len(d)] * d).sum(1)))
            for (a, b), d in zip(pairs, deltas, strict=True)
        ]
        reduced = vocab.reduce(torch.cat([t.flatten() for t in (*partial, *moments)]))
        pieces = reduced.split([t.numel() for t in (*partial, *moments)])
        stats = [piece.view_as(t) for piece, t in zip(pieces, (*partial, *moments), strict=True)]

        grads: list[Tensor] = []
        smoothing = terms.label_smoothing
        for i, (z, (total, target, mean)) in enumerate(zip(self.logits, stats, strict=False)):
            log_normaliser = maxima[i] + total.log()
            losses = log_normaliser - (1 - smoothing) * target - smoothing * mean / vocab.size
            sums[i] += losses.sum()
            weights[i].div_(total[:, None])
            if wanted:
                grad = (weights[i] - smoothing / vocab.size).mul_(coefficients[i])
                grad.scatter_add_(1, local[: len(z), None], (own[: len(z), None] * -(1 - smoothing) * coefficients[i]))
                grads.append(grad)
        for j, ((a, b), delta) in enumerate(zip(pairs, deltas, strict=True), start=len(self.logits)):
            rows = len(delta)
            first, second = stats[j][0] / stats[a][0][:rows], stats[j][1] / stats[b][0][:rows]
            sums[j] += 0.5 * (first - second).sum()
            if wanted:
                p, q, half = weights[a][:rows], weights[b][:rows], 0.5 * coefficients[j]
                gap = p - q
                grads[a][:rows] += (p * (delta - first[:, None]) + gap) * half
                grads[b][:rows] -= (q * (delta - second[:, None]) + gap) * half
        return grads

    def _local_targets(self, vocab: VocabShard) -> tuple[Tensor, Tensor]:
        """Which targets lie in this rank's rows (1 or 0), and their local index (0 for the others)."""
        local = self.targets.long() - vocab.start
        own = (local >= 0) & (local < self.logits[0].shape[1])
        return own.to(self.logits[0].dtype), local * own


def _split(values: Tensor, like: list[Tensor]) -> tuple[Tensor, ...]:
    return values.split([len(t) for t in like])


def _difference(a: Tensor, b: Tensor) -> Tensor:
    rows = min(len(a), len(b))
    return a[:rows] - b[:rows]
