"""What mask-predict writes in each pass, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from janus_pt.generate.constraints import forbidden_in_nar
from janus_pt.generate.incremental import read_sources
from janus_pt.generate.mask_predict import MaskPredictOptions, candidate_lengths
from janus_pt.generate.refine import BOUNDARY, all_masked, refine
from janus_pt.inference.janus_model import JanusModel
from janus_pt.packing.slots import pad_sources


@dataclass(frozen=True)
class Place:
    """A token of an output after some pass: its piece, its probability, and whether this pass wrote it."""

    token: int
    piece: str
    probability: float
    written: bool


@torch.inference_mode()
def unfold(model: JanusModel, tokens: list[int], iterations: int) -> list[list[Place]]:
    """The output for one input after each of `iterations` passes; the last one is `generate(mode="nar")`'s."""
    config = model.config
    passes: list[list[Place]] = []
    options = MaskPredictOptions(iterations=iterations)
    source = pad_sources(
        [np.array([config.bos_token_id, *tokens, config.eos_token_id])], config.pad_token_id
    )
    memory = read_sources(model.model, source.to(model.device))
    best = memory.length_logits.argmax(dim=1) - BOUNDARY
    longest = options.longest(config.max_positions - BOUNDARY)
    draft = all_masked(candidate_lengths(best, 1, options.min_length, longest)[:, 0], config)

    def look(tokens: Tensor, scores: Tensor, written: Tensor) -> None:
        rows = (x[0, 1:-1].tolist() for x in (tokens, scores.exp(), written))
        passes.append(
            [Place(t, model.tokenizer.piece(t), p, new) for t, p, new in zip(*rows, strict=True)]
        )

    refine(model.model, memory, draft, iterations, forbidden_in_nar(config), look=look)
    return passes
