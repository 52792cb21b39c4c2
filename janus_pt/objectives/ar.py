"""Plain left-to-right training: the P_AR of JANUS alone, on the same slots, so that only the
objective differs."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import causal_slots, expected_causal_slots
from janus_pt.packing.example import Example


def terms(config: ObjectiveConfig) -> Terms:
    """One cross-entropy."""
    return Terms(("ar",), (), config.label_smoothing)


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """The pair's AR contents, and queries if the model has them; no position is masked."""
    target = pair.target
    content, query = causal_slots(target, model)
    # Queries follow the contents. Without queries the contents themselves predict.
    first = len(content) if len(query) else 0
    predict = {"ar": first + np.arange(len(target) - 1)}
    return Example(pair.source, content, query, target[1:], predict, len(target))


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """As many contents, queries and predictions as the target has tokens to predict."""
    content, queries = expected_causal_slots(target, model)
    return SlotCounts(causal_content=content, causal_queries=queries, predicted=content)


OBJECTIVE = Objective(terms, example, expected_slots)
