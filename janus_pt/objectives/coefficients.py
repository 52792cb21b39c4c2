"""The coefficients of a step's loss terms: weight over count."""

from __future__ import annotations

import torch
from torch import Tensor

from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.loss import ObjectiveLoss
from janus_pt.packing.batch import Batch
from janus_pt.packing.transfer import to_device


def term_rows(batch: Batch, terms: Terms) -> list[int]:
    """Rows of the batch that each loss term adds up, in the terms' order, the length's last."""
    rows = dict(batch.counts.predicted)
    # An aligned stream's loss is of its tokens, however many slots they may stand in.
    if batch.alignment is not None and terms.aligned_stream is not None:
        rows[terms.aligned_stream] = sum(batch.alignment.label_counts)
    of_streams = [rows[stream] for stream in terms.streams]
    # A pair compares the rows that both of its streams predict.
    of_pairs = [min(rows[first], rows[second]) for first, second in terms.pairs]
    return [*of_streams, *of_pairs, batch.counts.samples]


def coefficients(loss: ObjectiveLoss, rows: Tensor, target_tokens: Tensor | int) -> Tensor:
    """Weight over count of every term, float32 `[terms]`: the loss is a mean over the whole step,
    however it is divided into batches.

    Args:
        rows: `[terms]`, float64, of the whole step, as `term_rows` counts them.
        target_tokens: of the whole step.
    """
    normalisers = rows.clone()
    if loss.objective.normalize_by == "tokens":
        # The length's term, the last, is a mean over sentences in any case.
        normalisers[:-1] = target_tokens
    # A term may have no rows in a step; then its sum is 0 as well.
    weights = to_device(torch.tensor(loss.weights, dtype=rows.dtype), rows.device)
    return (weights / normalisers.clamp(min=1)).float()
