"""Examples of an objective from plain arrays, for tests of slots, models and decoding."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.example import Example, IntArray

NO_POSITIONS: IntArray = np.empty(0, dtype=np.int64)


def build_example(pair: MaskedPair, model: ModelConfig, objective: ObjectiveConfig) -> Example:
    """The example that the objective makes of a pair."""
    return OBJECTIVES[objective.name].example(pair, model, objective)


def make_example_of(
    name: str,
    source: IntArray,
    target: IntArray,
    masked: IntArray = NO_POSITIONS,
    *,
    mask_token_id: int = 4,
    position_offset: Literal[0, 1] = 1,
    **objective: Any,
) -> Example:
    """The example of the objective called `name`; its other settings are the defaults or
    `objective`'s."""
    model = ModelConfig(
        vocab_size=1 << 20, mask_token_id=mask_token_id, ar_position_offset=position_offset
    )
    config = ObjectiveConfig.model_validate({"name": name, **objective})
    return build_example(MaskedPair(source, target, masked), model, config)
