"""Smoothed cross-entropies and symmetric KL divergences, fused with the output projection (METHOD
§3).

Hidden states and the (vocabulary-sharded) embedding go in; the weighted total and every term's sum
come out. Target tokens are walked in chunks, and gradients are made in the same walk: no
[slots × vocabulary] tensor outlives a chunk.

For one target token let z_a be the logits of stream a, less their maximum, p_a the softmax of them,
and

    G_ab = E_{p_a}[z_b]                                   (one sum over the vocabulary for each a, b)

Then, with J_ab = ½[KL(p_a‖p_b) + KL(p_b‖p_a)] and Laplacian L of the graph whose edges are the
pairs, each with half its weight, everything about the pairs is linear in the streams:

    J_ab              =  ½ (G_aa - G_ab - G_ba + G_bb)                    (the log-normalisers cancel)
    ∂(Σ w J) / ∂z_a   =  p_a ∘ ((L z)_a - Σ_b L_ab G_ab) + (L p)_a

With smoothing s, weight w_a and target t the cross-entropy's part of the gradient is

    ∂(w_a CE_a) / ∂z_a  =  w_a (p_a - (1 - s) e_t - s / size)

Sums over the vocabulary are all that tensor-parallel ranks exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from janus_pt.model.output_bias import match_bias

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


def fused_losses(
    hidden: Mapping[str, Tensor],
    weight: Tensor,
    targets: Tensor,
    coefficients: Tensor,
    terms: Terms,
    vocab: VocabShard,
) -> tuple[Tensor, Tensor]:
    """The weighted total (differentiable) and the sums over rows of every term (for reports).

    Both results are equal on all tensor-parallel ranks. All ranks of `vocab.group` take part.

    Args:
        hidden: for each stream `[rows of the stream, hidden_size]`.
        weight: the output projection, `[local vocabulary, hidden_size]`, or with columns more for
            an output bias (`model/output_bias.py`).
        targets: `[rows]`.
        coefficients: `[terms]`, in the order of `terms.names`.
    """
    streams = [match_bias(hidden[name], weight) for name in terms.streams]
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
        """The total and the sums; arguments as of `fused_losses`."""
        # Losses are float32 sums even of bfloat16 states: J is a small difference of large numbers.
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        # Padding rows are in no product, so they get no probability and no gradient.
        real_rows = max(0, min(len(weight), vocab.size - vocab.start))
        real = weight[:real_rows]
        # h · mean_row is this rank's part of the mean of h's logits, which smoothing needs.
        mean_row = real.sum(0, dtype=dtype) / vocab.size
        coefficients = coefficients.to(dtype)
        sums = torch.zeros_like(coefficients)
        needs_gradient = any(ctx.needs_input_grad)
        grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_gradient else None
        grad_hidden = [torch.zeros_like(states) for states in hidden]
        on_cpu = weight.device.type == "cpu"
        lengths = [len(states) for states in hidden]
        runs = list(_runs(lengths, chunk_rows(len(real), on_cpu)))
        scratch = _scratch(runs, len(real), dtype, weight.device)
        for streams, chunks in runs:
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
            # Each rank has the part of its own tokens; the weight's gradient stays with its rows.
            for grad in grad_hidden:
                vocab.reduce(grad)
            ctx.save_for_backward(grad_weight.to(weight.dtype), *grad_hidden)
        ctx.mark_non_differentiable(sums)
        return coefficients @ sums, sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients were made in the forward walk; the total's own is a factor of them all.
        weight, *hidden = (grad * grads[0].to(grad.dtype) for grad in ctx.saved_tensors)
        return (weight, None, None, None, None, *hidden)


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


def chunk_rows(vocab_rows: int, on_cpu: bool) -> int:
    """Rows of a chunk, all streams counted."""
    elements = CPU_ELEMENTS if on_cpu else CHUNK_ELEMENTS
    rows = max(1, elements // max(1, vocab_rows))
    return min(rows, CPU_ROWS) if on_cpu else rows


Run = tuple[list[int], list[slice]]
"""Numbers of some streams, and chunks of target tokens that all of these predict."""


def _runs(lengths: list[int], rows: int) -> Iterator[Run]:
    """Runs of target tokens that the same streams predict, each in chunks of `rows`."""
    first = 0
    while first < max(lengths):
        streams = [stream for stream, length in enumerate(lengths) if length > first]
        # Streams predict prefixes: the shortest of these ends the run.
        last = min(lengths[stream] for stream in streams)
        step = max(1, rows // len(streams))
        chunks = [slice(start, min(start + step, last)) for start in range(first, last, step)]
        yield streams, chunks
        first = last


def _scratch(
    runs: Sequence[Run], vocab_rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Memory for logits, probabilities and gradient of the largest chunk: taken once, not for each
    chunk."""
    longest = 0
    for streams, chunks in runs:
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
