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
    """A stored sample as the objective's example.

    Args:
        fields: `text`, or `source` and `target`: token ids without bos and eos.
        rng: all chance comes from it, so that an example is a function of the sample and its seed.
    """
    masking = objective.masking
    target_field = "target" if "target" in fields else "text"
    target = _with_boundaries(fields[target_field], model)
    if masking.kind == "infill":
        source, masked = _infilled(rng, target, model, masking)
    else:
        source = _with_boundaries(fields["source"], model)
        masked = _masked(rng, len(target), masking)
    # Without the setting no number is drawn: the noise of older configurations stays the same.
    if masking.full_share and rng.random() < masking.full_share:
        masked = full_mask(len(target))
    rules = OBJECTIVES[objective.name]
    pair = MaskedPair(source, target, masked)
    # Last, since it depends on what is masked.
    if rules.sample_noise is not None:
        pair = replace(pair, chosen=rules.sample_noise(rng, target, masked))
    return rules.example(pair, model, objective)


def collate_examples(examples: Sequence[Example], objective: ObjectiveConfig) -> Batch:
    """The batch of an objective's examples, with R-Drop each of them twice.

    Raises:
        ValueError: the objective's examples list their streams in another order than its terms.
            Losses are paired with predictions by this order, so a wrong one would train on the
            wrong losses.
    """
    terms = OBJECTIVES[objective.name].terms(objective)
    # Here and not where the loss is: a pipeline's last stage gets the rows without their names.
    for example in examples:
        if tuple(example.predict) != terms.streams:
            actual, expected = ", ".join(example.predict), ", ".join(terms.streams)
            raise ValueError(
                f'objective "{objective.name}": its examples have the streams {actual}, but its '
                f"terms have {expected}: give `Example.predict` in the order of the terms"
            )
    return collate(examples, objective.draws, terms.suffix_streams)


def _with_boundaries(tokens: IntArray, model: ModelConfig) -> IntArray:
    whole = np.concatenate(([model.bos_token_id], tokens, [model.eos_token_id]))
    return whole.astype(np.int32)


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
