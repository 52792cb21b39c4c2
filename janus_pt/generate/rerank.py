"""Reranking: P_NAR writes an output of every length, P_AR of the same weights chooses among them."""

from __future__ import annotations

from dataclasses import replace

import torch

from janus_pt.config.section import Positive, Share
from janus_pt.generate.ar_scores import score_with_ar
from janus_pt.generate.hypotheses import Hypotheses
from janus_pt.generate.mask_predict import MaskPredictOptions, hypotheses_by_length
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source


class RerankOptions(MaskPredictOptions):
    """Mask-predict, and how its outputs are compared."""

    length_beam: Positive = 5
    """Lengths that are tried: the most probable one and its neighbours."""
    ar_weight: Share = 1.0
    """Weight of P_AR's mean log-probability (eos counted) against P_NAR's, which gets the rest."""

    def decode(self, model: JanusTransformer, source: Source) -> Hypotheses:
        """Hypotheses of `rerank`."""
        return rerank(model, source, self)


@torch.inference_mode()
def rerank(model: JanusTransformer, source: Source, options: RerankOptions) -> Hypotheses:
    """The hypotheses of mask-predict, best first by both distributions; one decoder pass more.

    `token_scores` are P_NAR's. An empty hypothesis comes last.
    """
    hypotheses, memory = hypotheses_by_length(model, source, options)
    lengths = hypotheses.lengths
    ar_scores = score_with_ar(model, memory, hypotheses.tokens.flatten(0, 1), lengths.flatten())
    log_prob = ar_scores.whole(lengths.flatten()).view_as(hypotheses.scores)
    ar_mean = log_prob / (lengths + model.config.scored_frame)
    if options.ar_weight == 1:
        # Not the mixture: an empty hypothesis has -inf under P_NAR, and 0 · -inf is NaN.
        scores = ar_mean
    else:
        scores = options.ar_weight * ar_mean + (1 - options.ar_weight) * hypotheses.scores
    scores = scores.masked_fill(lengths == 0, -torch.inf)
    return replace(hypotheses, scores=scores, passes=hypotheses.passes + 1).best_first()
