"""Plain left-to-right training: the P_AR of JANUS alone, on the same slots, so that only the objective differs."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import causal_slots
from janus_pt.packing.batch import Example, IntArray


def terms(config: ObjectiveConfig) -> Terms:
    """One cross-entropy."""
    return Terms(("ar",), (), config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """Weights in the order of `terms(config).names`, the length's last."""
    return [config.ce_ar, 0.0]


def example(
    source: IntArray,
    target: IntArray,
    masked: IntArray,
    mask_token_id: int,
    position_offset: int,
    ar_stream: str = "query",
) -> Example:
    """The pair's AR contents and queries, if there are any; `masked` has no part in it."""
    content, query = causal_slots(target, mask_token_id, position_offset, ar_stream)
    predict = {"ar": np.arange(len(content)) + len(query)}
    return Example(source, content, query, target[1:], predict, len(target))
