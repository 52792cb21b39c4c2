"""The tokens that mask-predict writes in each pass, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from janus_pt.generate.constraints import forbidden_in_nar
from janus_pt.generate.incremental import read_sources
from janus_pt.generate.mask_predict import MaskPredictOptions, candidate_lengths, lengths_from_head
from janus_pt.generate.refine import all_masked, refine
from janus_pt.inference.janus_model import JanusModel
from janus_pt.packing.example import framed
from janus_pt.packing.slots import pad_sources


@dataclass(frozen=True)
class TracedToken:
    """A token of an output after some pass.

    Attributes:
        token: its id.
        piece: its text in the tokenizer.
        probability: under P_NAR.
        written: whether this pass wrote it.
    """

    token: int
    piece: str
    probability: float
    written: bool


@torch.inference_mode()
def trace_mask_predict(
    model: JanusModel, tokens: list[int], iterations: int
) -> list[list[TracedToken]]:
    """The output for one input after each of `iterations` passes.

    The last one is the output of `generate(mode="nar")` with the same number of passes.
    """
    config = model.config
    options = MaskPredictOptions(iterations=iterations)
    source = pad_sources([framed(tokens, config.source_frame)], config.pad_token_id)
    memory = read_sources(model.model, source.to(model.device))
    longest = options.longest(config.max_positions - config.target_frame.size)
    best = lengths_from_head(memory, config)
    lengths = candidate_lengths(best, options.length_beam, options.min_length, longest)
    draft = all_masked(lengths[:, 0], config)

    passes: list[list[TracedToken]] = []

    def record(tokens: Tensor, scores: Tensor, written: Tensor) -> None:
        """Note a pass; arguments as of `refine`'s `look`."""
        # The only row, without its frame. Copied now: refinement writes over the tensors.
        text = slice(len(config.target_frame.prefix), -1)
        ids = tokens[0, text].tolist()
        probabilities = scores[0, text].exp().tolist()
        is_new = written[0, text].tolist()
        traced = []
        for token, probability, new in zip(ids, probabilities, is_new, strict=True):
            traced.append(TracedToken(token, model.tokenizer.piece(token), probability, new))
        passes.append(traced)

    refine(model.model, memory, draft, iterations, forbidden_in_nar(config), look=record)
    return passes
