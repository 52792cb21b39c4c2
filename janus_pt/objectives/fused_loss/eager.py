"""The walk in PyTorch's own operations: on CPUs, and wherever no kernels of ours run.

With G_ab = E_{p_a}[z_b] (one sum over the vocabulary for each a, b) and the Laplacian L of the graph
whose edges are the pairs, each with half its weight, everything about the pairs is linear in the
streams:

    J_ab              =  ½ (G_aa - G_ab - G_ba + G_bb)                    (the log-normalisers cancel)
    ∂(Σ w J) / ∂z_a   =  p_a ∘ ((L z)_a - Σ_b L_ab G_ab) + (L p)_a
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from janus_pt.objectives.fused_loss.chunks import Run, chunk_rows, runs
from janus_pt.objectives.fused_loss.terms import Terms, VocabShard, WalkResult


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
    # Only CPUs, which need not wait, meet padding here: it is made for graphs of CUDA's kernels.
    if targets.device.type == "cpu" and bool((targets < 0).any()):
        return _walk_real_rows(hidden, weight, targets, coefficients, terms, vocab, needs_gradient)
    dtype = coefficients.dtype
    # Padding rows are in no product, so they get no probability and no gradient.
    real = vocab.real_rows(weight)
    # h · mean_row is this rank's part of the mean of h's logits, which smoothing needs.
    mean_row = real.sum(0, dtype=dtype) / vocab.size
    sums = torch.zeros_like(coefficients)
    grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_gradient else None
    grad_hidden = [torch.zeros_like(states) for states in hidden]
    lengths = [len(states) for states in hidden]
    chunked = list(runs(lengths, chunk_rows(len(real), on_cpu=True)))
    scratch = _scratch(chunked, len(real), dtype, weight.device)
    for streams, chunks in chunked:
        group = _StreamGroup.of(streams, coefficients, terms, vocab)
        for rows in chunks:
            inputs = torch.stack([hidden[stream][rows] for stream in streams], dim=1)
            logits, probabilities, gradient = _views(scratch, inputs)
            _product(inputs.flatten(0, 1), real.t(), logits.flatten(0, 1))
            mean = inputs.to(dtype) @ mean_row
            softmax = group.softmax(logits, probabilities, mean, targets[rows])
            group.add_terms(sums, softmax)
            if grad_weight is None:
                continue
            grad_logits = group.gradient(softmax, gradient)
            grad_logits = grad_logits.to(weight.dtype).flatten(0, 1)
            grad_inputs = (grad_logits @ real).view_as(inputs)
            grad_inputs = group.weighted(grad_inputs)
            for stream, grad in zip(streams, grad_inputs.unbind(1), strict=True):
                grad_hidden[stream][rows] = grad
            weighted_inputs = group.weighted(inputs).flatten(0, 1)
            _add_product(grad_weight[: len(real)], grad_logits.t(), weighted_inputs)
    if grad_weight is not None:
        shares = terms.label_smoothing * coefficients[: len(hidden)]
        _subtract_smoothing(
            shares, mean_row, hidden, grad_hidden, grad_weight[: len(real)], vocab.size
        )
    return WalkResult(sums, grad_weight, grad_hidden)


def _walk_real_rows(
    hidden: list[Tensor], weight: Tensor, targets: Tensor, *rest: Any
) -> WalkResult:
    """`walk`, with `rest` of its arguments, without the rows that are padding, whose gradient is zero."""
    real = (targets >= 0).nonzero().flatten()
    rows = [real[real < len(states)] for states in hidden]
    kept = [states[own] for states, own in zip(hidden, rows, strict=True)]
    found = walk(kept, weight, targets[real], *rest)
    grad_hidden = [torch.zeros_like(states) for states in hidden]
    for grad, own, part in zip(grad_hidden, rows, found.grad_hidden, strict=True):
        grad[own] = part
    return WalkResult(found.sums, found.grad_weight, grad_hidden)


def _subtract_smoothing(
    shares: Tensor,
    mean_row: Tensor,
    hidden: Sequence[Tensor],
    grad_hidden: list[Tensor],
    grad_weight: Tensor,
    size: int,
) -> None:
    """Smoothing's part of the gradient, w_a s / size, is the same at every logit of a stream: its
    products with the weight and with the hidden states are sums, which need no logits."""
    for share, grad, states in zip(shares.unbind(0), grad_hidden, hidden, strict=True):
        grad -= (share * mean_row).to(grad.dtype)
        grad_weight -= share / size * states.sum(0, dtype=shares.dtype)


def _scratch(
    chunked: Sequence[Run], vocab_rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Memory for logits, probabilities and gradient of the largest chunk: taken once, not for each
    chunk."""
    longest = 0
    for streams, chunks in chunked:
        first_chunk = chunks[0]
        longest = max(longest, len(streams) * (first_chunk.stop - first_chunk.start))
    return torch.empty(3, longest, vocab_rows, dtype=dtype, device=device)


def _views(scratch: Tensor, inputs: Tensor) -> list[Tensor]:
    """The three tensors `[rows, streams, local vocabulary]` of a chunk's `inputs [rows, streams,
    hidden]`."""
    rows, streams, _ = inputs.shape
    return [memory[: rows * streams].view(rows, streams, -1) for memory in scratch]


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
class _Softmax:
    """A chunk's softmax over a vocabulary that ranks share; `[rows, streams]` where no shape is
    given.

    z: logits less this rank's largest, `[rows, streams, local vocabulary]` (whole logits without
    pairs).
    p: softmax over this rank's tokens, `[rows, streams, local vocabulary]`.
    shift: this rank's largest logit less the largest of all.
    ratio: this rank's share of the normaliser: `ratio * p` is the softmax over all tokens.
    expectation: G, `[rows, streams, streams]`; None without pairs.
    is_local: whether the target is one of this rank's tokens, `[rows]`.
    local_target: its row here, 0 where it is not, `[rows, streams, 1]`.
    """

    z: Tensor
    p: Tensor
    shift: Tensor
    ratio: Tensor
    expectation: Tensor | None
    cross_entropy: Tensor
    is_local: Tensor
    local_target: Tensor


@dataclass(frozen=True)
class _StreamGroup:
    """The terms over some of the streams, for target tokens that all of these predict.

    streams: their numbers.
    pairs: (number of the term, two indices into `streams`).
    weight: w `[streams]`.
    laplacian: L `[streams, streams]`.
    """

    streams: list[int]
    pairs: list[tuple[int, int, int]]
    weight: Tensor
    laplacian: Tensor
    vocab: VocabShard
    smoothing: float

    @staticmethod
    def of(
        streams: list[int], coefficients: Tensor, terms: Terms, vocab: VocabShard
    ) -> _StreamGroup:
        """The group of these streams, with the pairs among them."""
        index = {terms.streams[stream]: i for i, stream in enumerate(streams)}
        pairs = []
        for number, (first, second) in enumerate(terms.pairs, start=len(terms.streams)):
            if first in index and second in index:
                pairs.append((number, index[first], index[second]))
        laplacian = coefficients.new_zeros(len(streams), len(streams))
        for number, a, b in pairs:
            half = 0.5 * coefficients[number]
            # Element by element: an index list would be copied to the device, which waits for it.
            laplacian[a, a] += half
            laplacian[b, b] += half
            laplacian[a, b] -= half
            laplacian[b, a] -= half
        weight = torch.stack([coefficients[stream] for stream in streams])
        return _StreamGroup(streams, pairs, weight, laplacian, vocab, terms.label_smoothing)

    def weighted(self, x: Tensor) -> Tensor:
        """`x [rows, streams, hidden]` times the factor w that `gradient` omits where there are
        no pairs: it costs less here than on the logits."""
        if self.pairs:
            return x
        weight = self.weight.to(x.dtype)
        return x * weight[:, None]

    def softmax(self, logits: Tensor, free: Tensor, mean: Tensor, targets: Tensor) -> _Softmax:
        """The softmax of `logits [rows, streams, local vocabulary]`; overwrites these and `free`,
        one like them.

        mean: this rank's part of the logits' mean, `[rows, streams]`. All ranks of the group take
        part.
        """
        vocab = self.vocab
        smoothing = self.smoothing
        local_target = targets - vocab.start
        is_local = (local_target >= 0) & (local_target < logits.shape[-1])
        # Another rank's target reads row 0 here, and its value is multiplied by 0.
        local_target = local_target * is_local
        local_target = local_target[:, None, None].expand(-1, len(self.streams), 1)
        local_highest = logits.amax(-1)
        highest = vocab.reduce(local_highest.clone(), dist.ReduceOp.MAX)
        target_logit = logits.gather(-1, local_target)[..., 0]
        target = (target_logit - highest) * is_local[:, None]
        p = torch.softmax(logits, dim=-1, out=free)
        shift = local_highest - highest
        # This rank's part of the normaliser Σ exp(z): its most probable token has p = 1 over its
        # own sum.
        normaliser = shift.exp() / p.amax(-1)
        parts = [normaliser, target, mean]
        z = logits
        if self.pairs:
            # Of logits less their highest, not of log p: J is a small difference, and large numbers
            # would drown it.
            z = logits.sub_(local_highest[..., None])
            local_expectation = torch.bmm(p, z.transpose(1, 2)) + shift[:, None]
            parts += (normaliser[..., None] * local_expectation).unbind(-1)
        # All sums in one exchange: its latency is what it costs.
        reduced = vocab.reduce(torch.stack(parts))
        total, target, mean, *moments = reduced.unbind(0)
        expectation = None
        if self.pairs:
            expectation = torch.stack(moments, -1) / total[..., None]
        smoothed_target = (1 - smoothing) * target
        smoothed_rest = smoothing * (mean - highest)
        cross_entropy = total.log() - smoothed_target - smoothed_rest
        ratio = normaliser / total
        return _Softmax(z, p, shift, ratio, expectation, cross_entropy, is_local, local_target)

    def add_terms(self, sums: Tensor, softmax: _Softmax) -> None:
        """Add the chunk's terms to `sums`."""
        cross_entropies = softmax.cross_entropy.sum(0)
        for stream, value in zip(self.streams, cross_entropies.unbind(0), strict=True):
            sums[stream] += value
        if softmax.expectation is None:
            return
        # J_ab = ½ (G_aa - G_ab - G_ba + G_bb), summed over the rows.
        g = softmax.expectation.sum(0)
        for number, a, b in self.pairs:
            sums[number] += 0.5 * (g[a, a] - g[a, b] - g[b, a] + g[b, b])

    def gradient(self, softmax: _Softmax, free: Tensor) -> Tensor:
        """The total's gradient by the logits, but for smoothing's constant and, without pairs, the
        factor w.

        Overwrites `softmax.p` and `free`, which may be what is returned.
        """
        ratio = softmax.ratio
        grad = softmax.p
        is_local = softmax.is_local[:, None].to(ratio.dtype)
        at_target = (self.smoothing - 1) * is_local
        if softmax.expectation is not None:
            at_target = at_target * self.weight
            # Each rank's z is less its own highest: `shift` makes up for it.
            minus_g = softmax.shift[:, None] - softmax.expectation
            z_free = (self.laplacian * minus_g).sum(-1)
            # p_a ∘ (L z)_a, then p_a ∘ (w_a - Σ_b L_ab G_ab) and (L p)_a in one product with p.
            ratio_l = ratio[..., None] * self.laplacian
            grad = torch.bmm(ratio_l, softmax.z, out=free).mul_(softmax.p)
            diagonal = torch.diag_embed(ratio * (self.weight + z_free))
            factors = self.laplacian * ratio[:, None] + diagonal
            grad.baddbmm_(factors, softmax.p)
        elif self.vocab.group is not None:
            grad *= ratio[..., None]
        at_target = at_target.expand_as(ratio)[..., None]
        return grad.scatter_add_(-1, softmax.local_target, at_target)
