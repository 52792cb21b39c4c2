"""BANG's non-autoregressive fine-tuning (Qi et al. 2021): every token is predicted from mask symbols alone."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.objectives.fused_loss import Terms
from janus_pt.packing.batch import Example, IntArray
from janus_pt.packing.slots import CAUSAL, make_slots


def terms(config: ObjectiveConfig) -> Terms:
    """One cross-entropy."""
    return Terms(("nar",), (), config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """Weights in the order of `terms(config).names`, the length's last: eos ends an output, no length is predicted."""
    return [config.ce_nar, 0.0]


def example(
    source: IntArray, target: IntArray, masked: IntArray, mask_token_id: int, position_offset: int
) -> Example:
    """A mask symbol for each token of the target but bos, which reads itself and those before; `masked` is not used."""
    order = np.arange(len(target) - 1)
    content = make_slots(
        mask_token_id, order + position_offset, CAUSAL, rank=order, until=order + 1
    )
    return Example(source, content, content[:0], target[1:], {"nar": order}, len(target))
