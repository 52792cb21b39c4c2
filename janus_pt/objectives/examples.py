"""From stored token arrays to examples of the objective: boundary symbols, noise, slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import Generator

from janus_pt.config.schema import MaskingConfig, ModelConfig, ObjectiveConfig
from janus_pt.objectives import build_example, cmlmc
from janus_pt.objectives.masking import full_mask, infill, some_of, span_mask, uniform_mask
from janus_pt.packing.batch import Example

IntArray = np.ndarray[Any, np.dtype[Any]]


def make_example(
    fields: Mapping[str, IntArray],
    rng: Generator,
    *,
    model: ModelConfig,
    objective: ObjectiveConfig,
) -> Example:
    """A stored sample (`text`, or `source` and `target`) as the objective's example; all chance comes from `rng`."""
    masking = objective.masking
    target = _with_boundaries(fields["target" if "target" in fields else "text"], model)
    if masking.kind == "infill":
        source, masked = _infilled(rng, target, model, masking)
    else:
        source = _with_boundaries(fields["source"], model)
        masked = _masked(rng, len(target), masking)
    if masking.full_share and rng.random() < masking.full_share:
        masked = full_mask(len(target))
    corrected = None
    if objective.name == "cmlmc":
        shown = np.setdiff1d(full_mask(len(target)), masked, assume_unique=True)
        corrected = some_of(rng, shown, cmlmc.SHARE)
    return build_example(source, target, masked, model, objective, corrected)


def _with_boundaries(tokens: IntArray, model: ModelConfig) -> IntArray:
    return np.concatenate(([model.bos_token_id], tokens, [model.eos_token_id])).astype(np.int32)


def _masked(rng: Generator, length: int, masking: MaskingConfig) -> IntArray:
    if masking.kind == "uniform":
        return uniform_mask(rng, length)
    return span_mask(rng, length, masking.ratio, masking.mean_span_length)


def _infilled(
    rng: Generator, target: IntArray, model: ModelConfig, masking: MaskingConfig
) -> tuple[IntArray, IntArray]:
    return infill(
        rng,
        target,
        model.mask_token_id,
        masking.ratio,
        masking.mean_span_length,
        masking.visible_share,
        masking.rotate_probability,
        model.max_positions,
    )
