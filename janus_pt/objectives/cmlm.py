"""The conditional masked language model (Ghazvininejad et al. 2019): the P_NAR of JANUS alone."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import masked_first, visible_slots
from janus_pt.packing.batch import Example, IntArray


def terms(config: ObjectiveConfig) -> Terms:
    """One cross-entropy, at the mask symbols."""
    return Terms(("nar",), (), config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """Weights in the order of `terms(config).names`, the length's last."""
    return [config.ce_nar, config.length]


def example(
    source: IntArray, target: IntArray, masked: IntArray, mask_token_id: int, position_offset: int
) -> Example:
    """Unmasked targets and mask symbols, all of which read each other; there are no queries."""
    content = visible_slots(target, masked, mask_token_id)
    predict = {"nar": len(target) - len(masked) + np.arange(len(masked))}
    return Example(
        source, content, content[:0], target[masked_first(target, masked)], predict, len(target)
    )
