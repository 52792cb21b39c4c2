"""CMLMC (Huang et al. 2022): CMLM that also learns to correct what it wrote itself.

A sample has two halves that do not read each other. In one some tokens are masked, as in CMLM. In
the other the same tokens are masked, and some of the visible ones are not the true ones but what
the model writes when everything is
masked: it must say what belongs there. They are unknown when a batch is packed; `correct` fills
them in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.random import Generator
from torch import Tensor

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.model.best_token import best_tokens
from janus_pt.model.output_bias import match_bias
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms, VocabShard
from janus_pt.objectives.janus import masked_first, visible_slots
from janus_pt.objectives.masking import full_mask, some_of
from janus_pt.packing.batch import Batch
from janus_pt.packing.example import Example, IntArray, SlotArray
from janus_pt.packing.slots import CAUSAL, RANK, SEGMENT, TOKEN, Slots, make_slots

CORRECTED = "corrected"
"""The stream of the tokens to be corrected, which come last among the targets."""
SHARE = 0.3
"""Of the visible tokens, rounded down: those to be corrected."""
UNWRITTEN = -1
"""Token of a slot that `correct` has not filled yet."""
INNER = 1
"""Rank of the second half's slots; bos and eos have rank 0."""
CHUNK_ELEMENTS = 1 << 22
"""Logits computed at once."""


def terms(config: ObjectiveConfig) -> Terms:
    """Cross-entropy of the masked tokens, and of those to be corrected."""
    return Terms(("nar", CORRECTED), (), config.label_smoothing, suffix_streams=(CORRECTED,))


def sample_noise(rng: Generator, target: IntArray, masked: IntArray) -> IntArray:
    """The positions to be corrected, sorted: a share of those that are neither masked nor bos or
    eos."""
    visible = np.setdiff1d(full_mask(len(target)), masked, assume_unique=True)
    return some_of(rng, visible, SHARE)


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """Both halves. `pair.chosen` are the positions to be corrected; they come last among the
    targets."""
    target, masked, corrected = pair.target, pair.masked, pair.chosen
    first = visible_slots(target, masked, model.mask_token_id)
    second = correction_slots(target, masked, corrected, model.mask_token_id)
    content = np.concatenate((first, second))
    no_query = content[:0]
    positions = masked_first(target, masked)
    predicted = np.concatenate((positions[~np.isin(positions, corrected)], corrected))
    predict = {
        "nar": len(first) - len(masked) + np.arange(len(masked)),
        CORRECTED: len(first) + corrected,
    }
    return Example(pair.source, content, no_query, target[predicted], predict, len(target))


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """A content for each target token in each half."""
    visible = target - 2 - masked
    return SlotCounts(
        causal_content=target, masked_content=target, predicted=masked + SHARE * visible
    )


def correction_slots(
    target: IntArray, masked: IntArray, corrected: IntArray, mask_token_id: int
) -> SlotArray:
    """The second half: all positions in order, all of which read each other."""
    tokens = target.copy()
    tokens[masked] = mask_token_id
    tokens[corrected] = UNWRITTEN
    ranks = np.full(len(target), INNER)
    ranks[[0, -1]] = 0
    return make_slots(tokens, np.arange(len(target)), CAUSAL, ranks, until=INNER + 1)


@torch.no_grad()
def correct(model: JanusTransformer, batch: Batch, encoder_out: Tensor, vocab: VocabShard) -> Slots:
    """The batch's slots, the `UNWRITTEN` ones filled with the most probable tokens of an all-masked
    target.

    One decoder pass in the model's own mode (dropout included, in training). All tensor-parallel
    ranks take part."""
    table = batch.slots.table
    tokens = table[..., TOKEN]
    # bos and eos have another rank: they stay visible when the rest of the second half is masked.
    inner = (table[..., SEGMENT] & 1 == CAUSAL) & (table[..., RANK] == INNER)
    all_masked = tokens.masked_fill(inner, model.config.mask_token_id)
    hidden = model.decode(_with_tokens(batch.slots, all_masked), encoder_out, batch.source)
    rows = hidden.flatten(0, 1).index_select(0, batch.predict[CORRECTED])
    best = most_probable(rows, model.output_weight(), vocab)
    # A stream's rows are ordered by sample and position, and masked_scatter fills in the order of
    # the row: both agree.
    written = tokens.masked_scatter(tokens == UNWRITTEN, best.to(tokens.dtype))
    return _with_tokens(batch.slots, written)


def most_probable(hidden: Tensor, weight: Tensor, vocab: VocabShard) -> Tensor:
    """Token with the highest logit for each of `hidden [rows, hidden]`; all ranks of `vocab.group`
    take part."""
    real = vocab.real_rows(weight)

    def local_logits(rows: Tensor) -> Tensor:
        return match_bias(rows, real) @ real.t()

    local_index, local_highest = best_tokens(hidden, local_logits, len(real), CHUNK_ELEMENTS)
    local_token = local_index + vocab.start
    highest = vocab.reduce(local_highest.clone(), dist.ReduceOp.MAX)
    # Ranks without the highest logit say `vocab.size`, so the minimum is the lowest token that has
    # it.
    token = torch.where(local_highest == highest, local_token, vocab.size)
    return vocab.reduce(token, dist.ReduceOp.MIN)


def _with_tokens(slots: Slots, tokens: Tensor) -> Slots:
    table = slots.table.clone()
    table[..., TOKEN] = tokens
    return replace(slots, table=table)


OBJECTIVE = Objective(
    terms, example, expected_slots, sample_noise=sample_noise, before_decode=correct
)
