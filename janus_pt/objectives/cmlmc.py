"""CMLMC (Huang et al. 2022): CMLM that also learns to correct what it wrote itself.

A sample has two halves that do not read each other. In one some tokens are masked, as in CMLM. In the other the same
tokens are masked, and some of those that show are not the true ones but what the model writes when everything is
masked: it is to say what belongs there. They are not known when a batch is laid out; `correct` puts them in.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.fused_loss import Terms, VocabShard
from janus_pt.objectives.janus import masked_first, visible_slots
from janus_pt.packing.batch import CORRECTED, Batch, Example, IntArray
from janus_pt.packing.slots import CAUSAL, RANK, SEGMENT, TOKEN, SlotArray, Slots, make_slots

SHARE = 0.3
"""Of the tokens that show, rounded down: those that are to be corrected."""
UNWRITTEN = -1
"""Token of a slot that `correct` has not filled yet."""
INNER = 1
"""Rank of the second half's slots but those of bos and eos, whose rank is 0."""
CHUNK_ELEMENTS = 1 << 22
"""Logits computed at once."""


def terms(config: ObjectiveConfig) -> Terms:
    """Cross-entropy of the masked tokens, and of those to be corrected."""
    return Terms(("nar", CORRECTED), (), config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """Weights in the order of `terms(config).names`, the length's last."""
    return [config.ce_nar, config.ce_correction, config.length]


def example(
    source: IntArray,
    target: IntArray,
    masked: IntArray,
    mask_token_id: int,
    position_offset: int,
    corrected: IntArray,
) -> Example:
    """Both halves; `corrected` are sorted positions that are not in `masked`. They come last among the targets."""
    first = visible_slots(target, masked, mask_token_id)
    second = correction_slots(target, masked, corrected, mask_token_id)
    order = masked_first(target, masked)
    predicted = np.concatenate((order[~np.isin(order, corrected)], corrected))
    predict = {
        "nar": len(first) - len(masked) + np.arange(len(masked)),
        CORRECTED: len(first) + corrected,
    }
    content = np.concatenate((first, second))
    return Example(source, content, content[:0], target[predicted], predict, len(target))


def correction_slots(
    target: IntArray, masked: IntArray, corrected: IntArray, mask_token_id: int
) -> SlotArray:
    """The second half: all positions in order, all of which read each other."""
    tokens, ranks = target.copy(), np.full(len(target), INNER)
    tokens[masked], tokens[corrected] = mask_token_id, UNWRITTEN
    ranks[[0, -1]] = 0
    return make_slots(tokens, np.arange(len(target)), CAUSAL, ranks, until=INNER + 1)


@torch.no_grad()
def correct(model: JanusTransformer, batch: Batch, encoder_out: Tensor, vocab: VocabShard) -> Slots:
    """The batch's slots, the ones that are `UNWRITTEN` filled with the most probable tokens of an all-masked target.

    One decoder pass, as the model is (dropout included, in training). All tensor-parallel ranks take part.
    """
    table = batch.slots.table
    tokens = table[..., TOKEN]
    inner = (table[..., SEGMENT] & 1 == CAUSAL) & (table[..., RANK] == INNER)
    hidden = model.decode(
        _with_tokens(batch.slots, tokens.masked_fill(inner, model.config.mask_token_id)),
        encoder_out,
        batch.source,
    )
    rows = hidden.flatten(0, 1).index_select(0, batch.predict[CORRECTED])
    best = most_probable(rows, model.embed_tokens.get_parameter("weight"), vocab)
    # Rows of a stream are in the order of the samples and of their places, and so is what is scattered.
    return _with_tokens(
        batch.slots, tokens.masked_scatter(tokens == UNWRITTEN, best.to(tokens.dtype))
    )


def most_probable(hidden: Tensor, weight: Tensor, vocab: VocabShard) -> Tensor:
    """Token with the highest logit for each of `hidden [rows, hidden]`; all ranks of `vocab.group` take part."""
    real = weight[: max(0, min(len(weight), vocab.size - vocab.start))]
    parts = [
        (part @ real.t()).max(dim=-1)
        for part in hidden.split(max(1, CHUNK_ELEMENTS // max(1, len(real))))
    ]
    highest, place = (torch.cat(found) for found in zip(*parts, strict=True))
    most = vocab.reduce(highest.clone(), dist.ReduceOp.MAX)
    token = torch.where(highest == most, place + vocab.start, vocab.size)
    return vocab.reduce(token, dist.ReduceOp.MIN)


def _with_tokens(slots: Slots, tokens: Tensor) -> Slots:
    table = slots.table.clone()
    table[..., TOKEN] = tokens
    return replace(slots, table=table)
