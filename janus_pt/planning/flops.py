"""Floating-point operations of a training step, by formula."""

from __future__ import annotations

from janus_pt.config.schema import ModelConfig
from janus_pt.model.cost import Workload
from janus_pt.parallel.stages import layer_costs

CONTENT_READ = 1 / 3
"""Share of its sample's content slots that a slot reads on average.

A slot reads half of the AR content slots or all NAR ones.
"""


def flops_per_step(model: ModelConfig, work: Workload) -> float:
    """Floating-point operations that one step needs, forward and backward.

    The layers' own multiply-adds, added up: query, output and feed-forward projections of every slot
    that is computed, keys and values of content slots and source tokens, scores and weighted sums of
    what is read, and the output projection. With d the hidden and f the ffn size, for a plain model:

        encoder layer   source_tokens · (4d² + 2df + 2d · source_length)
        decoder layer   slots · (4d² + 2df + 2d · content_length + 2d · source_length)
                        + (content_slots + source_tokens) · 2d²       in the last layer only of slots that predict

    Embeddings, norms, softmax, the length head and what activation checkpointing recomputes are not
    counted, as is usual for MFU (Chowdhery et al. 2022, appendix B), nor is the first pass of CMLMC,
    which has no gradient.
    """
    multiply_adds = sum(cost.multiply_adds for cost in layer_costs(model, work))
    # A multiply-add is two operations. The backward pass multiplies twice: for the gradients of the
    # inputs and of the weights.
    return 2.0 * (1 + 2) * multiply_adds
