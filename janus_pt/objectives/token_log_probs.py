"""Log-probabilities of a few tokens at each of many slots, without the logits of all slots at once.

For losses over alignments: they ask for every token of a sample at every slot of it, where the other
losses ask for one token a slot.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from janus_pt.model.output_bias import match_bias
from janus_pt.objectives.fused_loss import VocabShard, chunk_rows


def token_log_probs(hidden: Tensor, weight: Tensor, tokens: Tensor, vocab: VocabShard) -> Tensor:
    """Log-probabilities `[rows, k]` of `tokens [rows, k]`, float32 at least; differentiable.

    Equal on all tensor-parallel ranks, all of which take part, also in the backward pass.

    Args:
        hidden: `[rows, hidden_size]`.
        weight: the output projection, as in `fused_losses`.
    """
    log_probs: Tensor = _TokenLogProbs.apply(match_bias(hidden, weight), weight, tokens, vocab)
    return log_probs


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, vocab: VocabShard
    ) -> Tensor:
        """See `token_log_probs`."""
        real = vocab.real_rows(weight)
        local, is_local = _local_tokens(tokens, len(real), vocab)
        log_sums, chosen = [], []
        for rows in _chunks(hidden, len(real)):
            logits = _logits(hidden[rows], real)
            log_sums.append(_log_sum(logits, vocab))
            chosen.append(logits.gather(1, local[rows]) * is_local[rows])
        log_sum = torch.cat(log_sums)
        ctx.save_for_backward(hidden, weight, local, is_local, log_sum)
        ctx.vocab = vocab
        return vocab.reduce(torch.cat(chosen)) - log_sum[:, None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the hidden states, summed over the ranks, and of this rank's weight."""
        hidden, weight, local, is_local, log_sum = ctx.saved_tensors
        real = ctx.vocab.real_rows(weight)
        grad_weight = torch.zeros_like(weight, dtype=log_sum.dtype)
        grad_hidden = torch.empty_like(hidden)
        # A row's normaliser is part of each of its log-probabilities.
        of_normaliser = grads[0].sum(1, keepdim=True)
        of_chosen = grads[0] * is_local
        for rows in _chunks(hidden, len(real)):
            # Logits are computed again: kept, they would be the largest tensor of all.
            probabilities = (_logits(hidden[rows], real) - log_sum[rows, None]).exp_()
            grad_logits = probabilities.mul_(-of_normaliser[rows])
            grad_logits.scatter_add_(1, local[rows], of_chosen[rows])
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[rows] = grad_logits @ real
            grad_weight[: len(real)] += grad_logits.t() @ hidden[rows]
        # Each rank has the part of its own tokens; the weight's gradient stays with its rows.
        ctx.vocab.reduce(grad_hidden)
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _local_tokens(tokens: Tensor, rows: int, vocab: VocabShard) -> tuple[Tensor, Tensor]:
    """The table's row here of each token, 0 where it is another rank's; and whether it is here."""
    local = tokens - vocab.start
    is_local = (local >= 0) & (local < rows)
    return local * is_local, is_local


def _chunks(hidden: Tensor, vocab_rows: int) -> list[slice]:
    step = chunk_rows(vocab_rows, hidden.device.type == "cpu")
    return [slice(first, first + step) for first in range(0, len(hidden), step)]


def _logits(hidden: Tensor, real: Tensor) -> Tensor:
    # In float32 at least: a log-probability is a small difference of large numbers.
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return (hidden @ real.t()).to(dtype)


def _log_sum(logits: Tensor, vocab: VocabShard) -> Tensor:
    """The logarithm of the normaliser over all ranks' tokens, `[rows]`."""
    highest = vocab.reduce(logits.amax(1), dist.ReduceOp.MAX)
    total = vocab.reduce((logits - highest[:, None]).exp_().sum(1))
    return highest + total.log_()
