"""The tokens that mask-predict writes in each pass, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from janus_pt.generate.constraints import forbidden_in_nar
from janus_pt.generate.incremental import read_sources
from janus_pt.generate.mask_predict import MaskPredictOptions, candidate_lengths, lengths_from_head
from janus_pt.generate.refine import all_masked, refine
from janus_pt.inference.janus_model import JanusModel
from janus_pt.packing.example import BOUNDARY_TOKENS
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
    row = np.array([config.bos_token_id, *tokens, config.eos_token_id])
    source = pad_sources([row], config.pad_token_id)
    memory = read_sources(model.model, source.to(model.device))
    longest = options.longest(config.max_positions - BOUNDARY_TOKENS)
    best = lengths_from_head(memory)
    lengths = candidate_lengths(best, options.length_beam, options.min_length, longest)
    draft = all_masked(lengths[:, 0], config)

    passes: list[list[TracedToken]] = []

    def record(tokens: Tensor, scores: Tensor, written: Tensor) -> None:
        # The only row, without bos and eos. Copied now: refinement writes over the tensors.
        ids = tokens[0, 1:-1].tolist()
        probabilities = scores[0, 1:-1].exp().tolist()
        is_new = written[0, 1:-1].tolist()
        traced = []
        for token, probability, new in zip(ids, probabilities, is_new, strict=True):
            traced.append(TracedToken(token, model.tokenizer.piece(token), probability, new))
        passes.append(traced)

    refine(model.model, memory, draft, iterations, forbidden_in_nar(config), look=record)
    return passes
