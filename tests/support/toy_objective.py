"""A toy objective, as a newcomer would add it: this module and `ROW`.

All tokens are masked. The first half of them and the last half are predicted by a stream each; the
last half's tokens are a suffix of the targets."""

from __future__ import annotations

import numpy as np

from janus_pt.config.objectives import OBJECTIVES as ROWS
from janus_pt.config.objectives import ObjectiveRow
from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import visible_slots
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.example import BOUNDARY_TOKENS, Example
from tests.support import layouts

NAME = "halves"
ROW = ObjectiveRow(weights=("ce_nar", "ce_correction", "length"), modes=("nar",))


def terms(config: ObjectiveConfig) -> Terms:
    """A cross-entropy for each half."""
    return Terms(("first", "last"), (), config.label_smoothing, suffix_streams=("last",))


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """bos, eos, then a mask symbol for each token; eos is a target that nothing predicts."""
    target = pair.target
    inner = len(target) - BOUNDARY_TOKENS
    half = inner // 2
    content = visible_slots(target, np.arange(1, inner + 1), model.mask_token_id)
    targets = np.concatenate((target[1 : half + 1], target[-1:], target[half + 1 : -1]))
    masks = BOUNDARY_TOKENS + np.arange(inner)
    predict = {"first": masks[:half], "last": masks[half:]}
    return Example(pair.source, content, content[:0], targets, predict, len(target))


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """All tokens but bos and eos are predicted."""
    return SlotCounts(masked_content=target, predicted=target - BOUNDARY_TOKENS)


OBJECTIVE = Objective(terms, example, expected_slots)


def train(config: str, settings: list[str], resume: bool) -> None:
    """One rank of a run, in a process of its own."""
    ROWS[NAME], OBJECTIVES[NAME] = ROW, OBJECTIVE
    layouts.train(config, settings, resume)
