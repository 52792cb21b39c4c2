"""JANUS without P_AUX: P_AR and P_NAR trained together, with or without a direct J between them. The ablation."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import causal_slots, masked_first, visible_slots
from janus_pt.packing.batch import Example, IntArray


def terms(config: ObjectiveConfig) -> Terms:
    """Two cross-entropies and the divergence of the two."""
    return Terms(("ar", "nar"), (("ar", "nar"),), config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """Weights in the order of `terms(config).names`, the length's last."""
    return [config.ce_ar, config.ce_nar, config.kl_ar_nar, config.length]


def example(
    source: IntArray,
    target: IntArray,
    masked: IntArray,
    mask_token_id: int,
    position_offset: int,
    ar_stream: str = "query",
) -> Example:
    """AR contents and queries, and the visible part of the NAR contents."""
    ar_content, ar_query = causal_slots(target, mask_token_id, position_offset, ar_stream)
    content = np.concatenate((ar_content, visible_slots(target, masked, mask_token_id)))
    predicted = masked_first(target, masked)
    predict = {
        "ar": predicted - 1 + len(content) * (len(ar_query) > 0),
        "nar": len(content) - len(masked) + np.arange(len(masked)),
    }
    return Example(source, content, ar_query, target[predicted], predict, len(target))
