"""From stored token arrays to examples of the objective: boundary symbols, noise, slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from numpy.random import Generator

from janus_pt.config.schema import Frame, MaskingConfig, ModelConfig, ObjectiveConfig
from janus_pt.model.block_masks import prepare_blocks
from janus_pt.objectives.base import MaskedPair
from janus_pt.objectives.masking import (
    full_mask,
    infill,
    span_mask,
    suffix_mask,
    uniform_mask,
)
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import Batch, collate
from janus_pt.packing.example import BOUNDARY_TOKENS, Example, IntArray, framed


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
    text = fields["target" if "target" in fields else "text"]
    if masking.kind == "infill":
        source_text, masked = _infilled(rng, text, model, masking)
    else:
        source_text = fields["source"]
        masked = _masked(rng, len(text) + BOUNDARY_TOKENS, masking)
    replaced = _mask_as_decoded(rng, len(text) + BOUNDARY_TOKENS, masking)
    masked = masked if replaced is None else replaced
    source = framed(source_text, model.source_frame)
    target = framed(text, model.target_frame)
    # Noise is drawn for a target with one token before its text.
    masked = masked + len(model.target_frame.prefix) - 1
    rules = OBJECTIVES[objective.name]
    pair = MaskedPair(source, target, masked)
    # Last, since it depends on what is masked.
    if rules.sample_noise is not None:
        pair = replace(pair, chosen=rules.sample_noise(rng, target, masked))
    return rules.example(pair, model, objective)


def collate_examples(
    examples: Sequence[Example],
    objective: ObjectiveConfig,
    blocks_for: ModelConfig | None = None,
    for_graphs: bool = False,
) -> Batch:
    """The batch of an objective's examples, with R-Drop each of them twice.

    Args:
        blocks_for: a model that reads the batch with FlexAttention: the blocks of its masks are
            prepared here.
        for_graphs: all sizes are among few (`run.cuda_graphs`).

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
    has_blocks = blocks_for is not None
    batch = collate(
        examples,
        objective.draws,
        terms.suffix_streams,
        terms.aligned_stream,
        for_graphs,
        has_blocks,
    )
    return batch if blocks_for is None else prepare_blocks(batch, blocks_for)


def _masked(rng: Generator, length: int, masking: MaskingConfig) -> IntArray:
    if masking.kind == "uniform":
        return uniform_mask(rng, length)
    return span_mask(rng, length, masking.ratio, masking.mean_span_length)


def _mask_as_decoded(rng: Generator, length: int, masking: MaskingConfig) -> IntArray | None:
    """A mask as decoding makes it, in place of the one of `masking.kind`; None: that one stays."""
    # Without the settings no number is drawn: the noise of older configurations stays the same.
    if not masking.full_share + masking.suffix_share:
        return None
    drawn = rng.random()
    if drawn < masking.full_share:
        return full_mask(length)
    if drawn < masking.full_share + masking.suffix_share:
        return suffix_mask(rng, length)
    return None


def _infilled(
    rng: Generator, text: IntArray, model: ModelConfig, masking: MaskingConfig
) -> tuple[IntArray, IntArray]:
    """The source's text, and the masked positions of a target with one token before its text."""
    longest_source = model.max_positions - model.source_frame.size
    source, masked = infill(
        rng,
        framed(text, Frame((model.bos_token_id,), (model.eos_token_id,))),
        model.mask_token_id,
        masking.ratio,
        masking.mean_span_length,
        masking.visible_share,
        masking.rotate_probability,
        longest_source + BOUNDARY_TOKENS,
    )
    return source[1:-1], masked
