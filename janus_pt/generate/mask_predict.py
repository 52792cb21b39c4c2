"""Mask-predict: decoding in a fixed number of passes (Ghazvininejad et al. 2019), with P_NAR."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.config.section import Positive
from janus_pt.generate.ar_scores import score_with_ar
from janus_pt.generate.constraints import forbidden_in_nar
from janus_pt.generate.hypotheses import DecodingOptions, Hypotheses
from janus_pt.generate.incremental import SourceMemory, read_sources
from janus_pt.generate.refine import all_masked, refine
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source

MARGIN = 1.25
"""Length of a draft in which P_AR looks for the end, for each token the length head predicts."""


class MaskPredictOptions(DecodingOptions):
    """Mask-predict."""

    iterations: Positive = 4
    """Decoder passes."""
    length_beam: Positive = 1
    """Lengths that are tried: the most probable one and its neighbours."""
    num_return_sequences: Positive = 1
    """Outputs for each input, best first."""
    length_prediction: Literal["length_head", "ar", "ratio"] = "length_head"
    """Source of the most probable length: the length head, P_AR (two passes more), or the length of
    the input."""
    length_ratio: Annotated[float, Field(gt=0)] = 1.0
    """`ratio`: tokens of the output for each token of the source."""
    adaptive: bool = False
    """Stop as soon as a pass changes no token of a sentence."""
    rescore_all: bool = False
    """Each pass chooses and scores every token anew, not only the masked ones; for models trained
    to do so (CMLMC)."""
    remove_repeats: bool = False
    """Remove each token that equals the one before it."""

    @model_validator(mode="after")
    def _fit_together(self) -> MaskPredictOptions:
        if "length_ratio" in self.model_fields_set and self.length_prediction != "ratio":
            raise ValueError('length_ratio: has no effect unless length_prediction is "ratio"')
        if self.num_return_sequences > self.length_beam:
            raise ValueError(
                f"num_return_sequences: {self.num_return_sequences} is more than the "
                f"{self.length_beam} lengths that are tried; raise length_beam"
            )
        return self

    @property
    def num_outputs(self) -> int:
        """Outputs that are wanted for each source."""
        return self.num_return_sequences

    def decode(self, model: JanusTransformer, source: Source) -> Hypotheses:
        """Hypotheses of `mask_predict`."""
        return mask_predict(model, source, self)


@torch.inference_mode()
def mask_predict(
    model: JanusTransformer, source: Source, options: MaskPredictOptions
) -> Hypotheses:
    """One hypothesis for each of `length_beam` lengths, best first by mean log-probability.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    hypotheses, _ = hypotheses_by_length(model, source, options)
    return hypotheses.best_first()


def hypotheses_by_length(
    model: JanusTransformer, source: Source, options: MaskPredictOptions
) -> tuple[Hypotheses, SourceMemory]:
    """The hypothesis of every length, in the order of lengths, and the sources as they were read."""
    config = model.config
    memory = read_sources(model, source)
    # Step 1: the lengths `[sources, length_beam]`.
    lengths, length_passes = _lengths(model, memory, source, options)
    # Step 2: a draft of masks for each, and its refinement. Copies of a source stand together.
    row_lengths = lengths.flatten()
    refined = refine(
        model,
        memory,
        all_masked(row_lengths, config),
        options.iterations,
        forbidden_in_nar(config),
        options.adaptive,
        options.rescore_all,
    )
    # Step 3: only padding behind the last token, and a score that does not favour short outputs.
    position = torch.arange(refined.tokens.shape[1], device=memory.device)
    tokens = refined.tokens.masked_fill(position >= row_lengths[:, None], config.pad_token_id)
    token_scores = refined.scores.unflatten(0, lengths.shape)
    passes = refined.passes.unflatten(0, lengths.shape).amax(dim=1)
    hypotheses = Hypotheses(
        tokens=tokens.unflatten(0, lengths.shape),
        token_scores=token_scores,
        lengths=lengths,
        scores=mean_score(token_scores, lengths),
        passes=passes + length_passes,
    )
    if options.remove_repeats:
        hypotheses = hypotheses.without_repeats(config.pad_token_id)
    return hypotheses, memory


def mean_score(token_scores: Tensor, lengths: Tensor) -> Tensor:
    """Mean log-probability of a hypothesis' tokens; -inf for an empty one, which must not win."""
    mean = token_scores.sum(dim=-1) / lengths.clamp(min=1)
    return mean.masked_fill(lengths == 0, -torch.inf)


def _lengths(
    model: JanusTransformer, memory: SourceMemory, source: Source, options: MaskPredictOptions
) -> tuple[Tensor, int]:
    """Lengths to try, `[sources, length_beam]`, and the decoder passes made to find them."""
    shortest = options.min_length
    longest = options.longest(model.config.max_positions - model.config.target_frame.size)
    passes = 0
    if options.length_prediction == "ratio":
        best = lengths_from_ratio(source, options.length_ratio, model.config)
    elif options.length_prediction == "ar":
        best, passes = lengths_from_ar(model, memory, longest, forbidden_in_nar(model.config))
    else:
        best = lengths_from_head(memory, model.config)
    return candidate_lengths(best, options.length_beam, shortest, longest), passes


def candidate_lengths(best: Tensor, length_beam: int, shortest: int, longest: int) -> Tensor:
    """Output lengths `[sources, length_beam]` around `best [sources]`, within the bounds."""
    offsets = torch.arange(length_beam, device=best.device) - length_beam // 2
    # The middle is clamped first, so that the others stay around a length that is allowed.
    middle = best[:, None].clamp(shortest, longest)
    return (middle + offsets).clamp(shortest, longest)


def lengths_from_head(memory: SourceMemory, config: ModelConfig) -> Tensor:
    """The length head's most probable output length, `[sources]`; may be below 0."""
    # The head is trained on whole targets, with their frame.
    return memory.length_logits.argmax(dim=1) - config.target_frame.size


def lengths_from_ratio(source: Source, ratio: float, config: ModelConfig) -> Tensor:
    """`ratio` times the source's length without its frame, rounded, `[sources]`."""
    lengths = (source.samples >= 0).sum(dim=1) - config.source_frame.size
    return (lengths * ratio).round().long()


def lengths_from_ar(
    model: JanusTransformer, memory: SourceMemory, longest: int, forbidden: Collection[int]
) -> tuple[Tensor, int]:
    """The length at which P_AR is most ready to end a draft.

    P_NAR writes the draft in one pass, somewhat longer than the length head predicts.

    Returns:
        The lengths, `[sources]`, and the decoder passes that were made.
    """
    predicted = lengths_from_head(memory, model.config).clamp(min=1)
    draft_lengths = ((predicted * MARGIN).ceil().long() + 1).clamp(max=longest)
    draft = all_masked(draft_lengths, model.config)
    refined = refine(model, memory, draft, iterations=1, forbidden=forbidden)
    scores = score_with_ar(model, memory, refined.tokens, draft_lengths)
    # One pass for the draft, one for P_AR.
    return scores.ends.argmax(dim=1), 2
