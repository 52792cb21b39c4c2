"""From stored token arrays to examples of the objective: boundary symbols, noise, slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from janus_pt.config.schema import MaskingConfig, ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair
from janus_pt.objectives.masking import full_mask, infill, span_mask, uniform_mask
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import Batch, collate
from janus_pt.packing.example import Example, IntArray


def make_example(
    fields: Mapping[str, IntArray],
    rng: Generator,
    *,
    model: ModelConfig,
    objective: ObjectiveConfig,
) -> Example:
    """A stored sample (`text`, or `source` and `target`) as the objective's example; all chance
    comes from `rng`."""
    masking = objective.masking
    target = _with_boundaries(fields["target" if "target" in fields else "text"], model)
    if masking.kind == "infill":
        source, masked = _infilled(rng, target, model, masking)
    else:
        source = _with_boundaries(fields["source"], model)
        masked = _masked(rng, len(target), masking)
    if masking.full_share and rng.random() < masking.full_share:
        masked = full_mask(len(target))
    made = OBJECTIVES[objective.name]
    pair = MaskedPair(source, target, masked)
    if made.sample_noise is not None:
        pair = replace(pair, chosen=made.sample_noise(rng, target, masked))
    return made.example(pair, model, objective)


def collate_examples(examples: Sequence[Example], objective: ObjectiveConfig) -> Batch:
    """The batch of an objective's examples, with R-Drop each of them twice.

    Raises:
        ValueError: the objective's examples list their streams in another order than its terms.
            Losses are paired with predictions by this order, so a wrong one would train on the
            wrong losses."""
    terms = OBJECTIVES[objective.name].terms(objective)
    for example in examples:
        if tuple(example.predict) != terms.streams:
            raise ValueError(
                f'objective "{objective.name}": its examples have the streams {", ".join(example.predict)}, '
                f"but its terms have {', '.join(terms.streams)}: give `Example.predict` in the order of the terms"
            )
    return collate(examples, objective.draws, terms.suffix_streams)


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
