"""Connectionist temporal classification (Graves et al. 2006) for generation in one pass (Libovický and
Helcl 2018; Saharia et al. 2020).

The decoder reads more mask symbols than the target has tokens, `model.upsampling` for each source
token. Each writes a token or the blank symbol, all at once; repeated tokens that stand side by side are
one token, and blanks vanish. The loss is the negative log-probability of the target: the sum over all
ways to write it. No length is predicted. The blank is the mask symbol: a slot that stays unfilled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms, VocabShard, require_triton
from janus_pt.objectives.token_log_probs import token_log_probs
from janus_pt.packing.alignment import Alignment
from janus_pt.packing.example import Example, IntArray
from janus_pt.packing.slots import MASKED, make_slots
from janus_pt.utils.errors import UserError

STREAM = "ctc"


def terms(config: ObjectiveConfig) -> Terms:
    """One loss over alignments."""
    return Terms((STREAM,), (), aligned_stream=STREAM)


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """Mask symbols alone, all of which read each other; no position is masked.

    Raises:
        UserError: the target needs more slots than the model has positions.
    """
    target = pair.target
    text = target[len(model.target_frame.prefix) : -len(model.target_frame.suffix)]
    # A target that is long for its source gets the slots it needs: without them its loss is infinite.
    needed = fewest_slots(text)
    count = max(num_slots(len(pair.source), model), needed)
    if count > model.max_positions:
        raise UserError(
            f"model.max_positions: a target of {len(text)} tokens needs {needed} slots (a repeated "
            f"token needs a blank between), but there are {model.max_positions}; raise it, or build "
            "the corpus with shorter targets"
        )
    content = make_slots(model.mask_token_id, np.arange(count), MASKED, rank=0, until=1)
    no_query = content[:0]
    classes = np.concatenate(([model.mask_token_id], text))
    # eos counts as a token of the step, as in every other objective.
    targets = target[len(model.target_frame.prefix) :]
    predict = {STREAM: np.arange(count)}
    return Example(pair.source, content, no_query, targets, predict, len(target), classes)


def num_slots(source: int, model: ModelConfig) -> int:
    """Slots for a source of so many tokens, its frame counted."""
    return min(model.upsampling * source, model.max_positions)


def fewest_slots(text: IntArray) -> int:
    """Slots that a text needs: one a token, and a blank between equal neighbours."""
    repeats = int((text[1:] == text[:-1]).sum())
    return max(1, len(text) + repeats)


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """The source is taken to be as long as the target."""
    count = num_slots(target, model)
    return SlotCounts(masked_content=count, predicted=count)


def loss(hidden: Tensor, weight: Tensor, alignment: Alignment, vocab: VocabShard) -> Tensor:
    """The sum over samples of -log P(target), a scalar.

    All tensor-parallel ranks take part.

    Args:
        hidden: of the stream's slots, `[rows, hidden]`.
    """
    classes = alignment.classes
    of_rows = classes.index_select(0, alignment.samples)
    log_probs = token_log_probs(hidden, weight, of_rows, vocab)
    # [samples, most rows, classes]
    by_sample = log_probs[alignment.rows.clamp(min=0)]
    losses: Tensor = _NegativeLogLikelihood.apply(by_sample, alignment)
    return losses.sum()


class _NegativeLogLikelihood(torch.autograd.Function):
    """-log P of each sample, whose gradient by a log-probability is the share of the paths through it."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, alignment: Alignment) -> Tensor:
        """-log P `[samples]`, of log-probabilities `[samples, most rows, classes]`, the blank first."""
        classes = alignment.classes
        # A token that occurs twice is one class, named by its first occurrence.
        first_occurrence = (classes[:, :, None] == classes[:, None, :]).byte().argmax(-1)
        sum_paths = _on_cuda if log_probs.device.type == "cuda" else _by_torch
        losses, shares = sum_paths(log_probs.detach(), first_occurrence[:, 1:], alignment)
        ctx.save_for_backward(shares)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (shares,) = ctx.saved_tensors
        return -shares * grads[0][:, None, None], None


def _on_cuda(log_probs: Tensor, labels: Tensor, alignment: Alignment) -> tuple[Tensor, Tensor]:
    """The losses and the shares of the paths, without a wait for the device."""
    require_triton()
    from janus_pt.objectives.ctc_kernel import losses_and_shares

    # The host knows these counts too, but to bring them to the device is to wait for it.
    row_counts = (alignment.rows >= 0).sum(1)
    label_counts = (alignment.classes != alignment.classes[:, :1]).sum(1)
    return losses_and_shares(log_probs, labels, row_counts, label_counts)


def _by_torch(log_probs: Tensor, labels: Tensor, alignment: Alignment) -> tuple[Tensor, Tensor]:
    """The same by torch's CTC loss.

    torch's own gradient is what belongs before a log-softmax over all classes: p - q where q is the
    share of the paths through a class. The classes here are some of the vocabulary, and p is added to
    each of them that torch's gradient has subtracted.
    """
    with torch.enable_grad():
        leaf = log_probs.transpose(0, 1).requires_grad_()
        rows, counts = torch.tensor(alignment.row_counts), torch.tensor(alignment.label_counts)
        losses = F.ctc_loss(leaf, labels, rows, counts, blank=0, reduction="none")
        (grad,) = torch.autograd.grad(losses.sum(), leaf)
    shares = (leaf.detach().exp() - grad).transpose(0, 1)
    # No path goes through what is behind a sample's rows; torch's gradient is 0 there.
    is_row = alignment.rows >= 0
    return losses.detach(), shares * is_row[..., None]


OBJECTIVE = Objective(terms, example, expected_slots, alignment_loss=loss)
