"""Mask-predict: decoding in a fixed number of passes (Ghazvininejad et al. 2019), with P_NAR."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from janus_pt.config.schema import ModelConfig, Positive
from janus_pt.generate.hypotheses import Hypotheses, LengthOptions
from janus_pt.generate.incremental import SourceMemory, read_sources
from janus_pt.generate.lengths import candidate_lengths, lengths_from_ar, lengths_from_ratio
from janus_pt.generate.refine import BOUNDARY, all_masked, refine
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source


class MaskPredictOptions(LengthOptions):
    """Options of mask-predict."""

    iterations: Positive = 4
    """Decoder passes."""
    length_beam: Positive = 1
    """Lengths that are tried: the most probable one and its neighbours."""
    num_return_sequences: Positive = 1
    """Outputs for each input, best first."""
    length_prediction: Literal["length_head", "ar", "ratio"] = "length_head"
    """Where the most probable length comes from: the length head, P_AR (two passes more), or the source's length."""
    length_ratio: Annotated[float, Field(gt=0)] = 1.0
    """`ratio`: tokens of the output over those of the source."""
    adaptive: bool = False
    """Stop as soon as a pass changes no token of a sentence."""
    rescore_all: bool = False
    """Each pass chooses and scores every token anew, not only the masked ones; for models trained to (CMLMC)."""
    remove_repeats: bool = False
    """Leave out a token that equals the one before it."""

    @model_validator(mode="after")
    def _fit_together(self) -> MaskPredictOptions:
        if "length_ratio" in self.model_fields_set and self.length_prediction != "ratio":
            raise ValueError('length_ratio: has no effect unless length_prediction is "ratio"')
        if self.num_return_sequences > self.length_beam:
            raise ValueError(
                f"num_return_sequences: {self.num_return_sequences} is more than the {self.length_beam} lengths "
                "that are tried; raise length_beam"
            )
        return self


def never_generated(config: ModelConfig) -> list[int]:
    """Symbols that have no place inside an output."""
    c = config
    return sorted({c.pad_token_id, c.bos_token_id, c.eos_token_id, c.unk_token_id, c.mask_token_id})


@torch.inference_mode()
def mask_predict(
    model: JanusTransformer, source: Source, options: MaskPredictOptions
) -> Hypotheses:
    """One hypothesis for each of `length_beam` lengths, best first by mean log-probability of its tokens.

    Raises:
        UserError: the bounds on the length leave none that the model can write.
    """
    found, _ = candidates(model, source, options)
    return found.best_first()


def candidates(
    model: JanusTransformer, source: Source, options: MaskPredictOptions
) -> tuple[Hypotheses, SourceMemory]:
    """The hypothesis of every length in the order of lengths, and the sources as they were read."""
    memory = read_sources(model, source)
    lengths, extra = _lengths(model, memory, source, options)
    draft = all_masked(lengths.flatten(), model.config)
    written = refine(
        model,
        memory,
        draft,
        options.iterations,
        never_generated(model.config),
        options.adaptive,
        options.rescore_all,
    )
    inside = (
        torch.arange(written.tokens.shape[1], device=memory.device) < lengths.flatten()[:, None]
    )
    padded = written.tokens.masked_fill(~inside, model.config.pad_token_id)
    tokens, scores = (x.unflatten(0, lengths.shape) for x in (padded, written.scores))
    passes = written.passes.unflatten(0, lengths.shape).amax(dim=1) + extra
    found = Hypotheses(tokens, scores, lengths, mean_score(scores, lengths), passes)
    return (
        without_repeats(found, model.config.pad_token_id) if options.remove_repeats else found
    ), memory


def _lengths(
    model: JanusTransformer, memory: SourceMemory, source: Source, options: MaskPredictOptions
) -> tuple[Tensor, int]:
    """Lengths to try, `[sources, length_beam]`, and the decoder passes it took to find them."""
    shortest, longest = options.min_length, options.longest(model.config.max_positions - BOUNDARY)
    extra = 0
    if options.length_prediction == "ratio":
        best = lengths_from_ratio(source, options.length_ratio)
    elif options.length_prediction == "ar":
        best, extra = lengths_from_ar(model, memory, longest, never_generated(model.config))
    else:
        best = memory.length_logits.argmax(dim=1) - BOUNDARY
    return candidate_lengths(best, options.length_beam, shortest, longest), extra


def mean_score(token_scores: Tensor, lengths: Tensor) -> Tensor:
    """Mean log-probability of a hypothesis' tokens; -inf for an empty one, which is nothing to prefer."""
    mean = token_scores.sum(dim=-1) / lengths.clamp(min=1)
    return mean.masked_fill(lengths == 0, -torch.inf)


def without_repeats(found: Hypotheses, pad_token_id: int) -> Hypotheses:
    """The same without tokens that equal their left neighbour; a hypothesis' score stays as it was."""
    place = torch.arange(found.tokens.shape[-1], device=found.tokens.device)
    stay = place < found.lengths[..., None]
    stay[..., 1:] &= found.tokens[..., 1:] != found.tokens[..., :-1]
    order = (~stay).byte().argsort(dim=-1, stable=True)
    lengths = stay.sum(dim=-1)
    inside = place < lengths[..., None]
    tokens = found.tokens.gather(-1, order).masked_fill(~inside, pad_token_id)
    return replace(
        found,
        tokens=tokens,
        token_scores=found.token_scores.gather(-1, order).masked_fill(~inside, 0),
        lengths=lengths,
    )
