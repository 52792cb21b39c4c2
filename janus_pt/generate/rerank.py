"""Reranking: P_NAR writes an output of every length, P_AR of the same weights says which is best."""

from __future__ import annotations

from dataclasses import replace

import torch

from janus_pt.config.schema import Positive, Share
from janus_pt.generate.ar_scores import score_with_ar
from janus_pt.generate.hypotheses import Hypotheses
from janus_pt.generate.mask_predict import MaskPredictOptions, candidates
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source


class RerankOptions(MaskPredictOptions):
    """Options of mask-predict, and how its outputs are compared."""

    length_beam: Positive = 5
    """Lengths that are tried: the most probable one and its neighbours."""
    ar_weight: Share = 1.0
    """Weight of P_AR's mean log-probability (eos counted) against P_NAR's, which gets the rest."""


@torch.inference_mode()
def rerank(model: JanusTransformer, source: Source, options: RerankOptions) -> Hypotheses:
    """The hypotheses of mask-predict, best first by both distributions; one decoder pass more.

    `token_scores` are P_NAR's. An empty hypothesis comes last.
    """
    found, memory = candidates(model, source, options)
    scored = score_with_ar(model, memory, found.tokens.flatten(0, 1), found.lengths.flatten())
    ar = scored.whole(found.lengths.flatten()).view_as(found.scores) / (found.lengths + 1)
    score = (
        ar
        if options.ar_weight == 1
        else options.ar_weight * ar + (1 - options.ar_weight) * found.scores
    )
    score = score.masked_fill(found.lengths == 0, -torch.inf)
    return replace(found, scores=score, passes=found.passes + 1).best_first()
