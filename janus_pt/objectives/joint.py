"""JANUS without P_AUX: P_AR and P_NAR trained together, with or without a direct J between them.
The ablation."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import (
    causal_slots,
    expected_causal_slots,
    masked_first,
    visible_slots,
)
from janus_pt.packing.example import Example


def terms(config: ObjectiveConfig) -> Terms:
    """Two cross-entropies and the divergence of the two."""
    return Terms(("ar", "nar"), (("ar", "nar"),), config.label_smoothing)


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """AR contents and queries, and the visible part of the NAR contents."""
    target, masked = pair.target, pair.masked
    ar_content, ar_query = causal_slots(target, model)
    nar_content = visible_slots(target, masked, model.mask_token_id)
    content = np.concatenate((ar_content, nar_content))
    predicted = masked_first(target, masked)
    # Queries follow the contents. Without queries the AR contents, which come first, predict.
    first_ar = len(content) if len(ar_query) else 0
    predict = {
        "ar": first_ar + predicted - 1,
        "nar": len(content) - len(masked) + np.arange(len(masked)),
    }
    return Example(pair.source, content, ar_query, target[predicted], predict, len(target))


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """Both models' slots side by side."""
    content, queries = expected_causal_slots(target, model)
    return SlotCounts(
        causal_content=content,
        causal_queries=queries,
        masked_content=target,
        predicted=content + masked,
    )


OBJECTIVE = Objective(terms, example, expected_slots)
