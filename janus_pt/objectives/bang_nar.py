"""BANG's non-autoregressive fine-tuning (Qi et al. 2021): every token is predicted from mask
symbols alone."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms
from janus_pt.packing.example import Example
from janus_pt.packing.slots import CAUSAL, make_slots


def terms(config: ObjectiveConfig) -> Terms:
    """One cross-entropy. No length is predicted, as eos ends an output."""
    return Terms(("nar",), (), config.label_smoothing)


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """A mask symbol for each target token but bos, which reads itself and those before; no position
    is chosen."""
    target = pair.target
    order = np.arange(len(target) - 1)
    positions = order + model.ar_position_offset
    content = make_slots(model.mask_token_id, positions, CAUSAL, rank=order, until=order + 1)
    no_query = content[:0]
    return Example(pair.source, content, no_query, target[1:], {"nar": order}, len(target))


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """One content and one prediction for each token but bos."""
    return SlotCounts(causal_content=target - 1, predicted=target - 1)


OBJECTIVE = Objective(terms, example, expected_slots)
