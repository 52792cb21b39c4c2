"""The conditional masked language model (Ghazvininejad et al. 2019): the P_NAR of JANUS alone."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import masked_first, visible_slots
from janus_pt.packing.example import Example


def terms(config: ObjectiveConfig) -> Terms:
    """One cross-entropy, at the mask symbols."""
    return Terms(("nar",), (), config.label_smoothing)


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """Unmasked targets and mask symbols, all of which read each other; there are no queries."""
    target, masked = pair.target, pair.masked
    content = visible_slots(target, masked, model.mask_token_id)
    no_query = content[:0]
    # The mask symbols are the last of the visible slots.
    predict = {"nar": len(content) - len(masked) + np.arange(len(masked))}
    predicted = target[masked_first(target, masked)]
    return Example(pair.source, content, no_query, predicted, predict, len(target))


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """One content a target token; the masked ones predict."""
    return SlotCounts(masked_content=target, predicted=masked)


OBJECTIVE = Objective(terms, example, expected_slots)
