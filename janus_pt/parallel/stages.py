"""Which layers a pipeline stage holds: a pure function of the model's shape, known before any model is built.

The model is a chain of E + D + 3 layers:

    0                  source embedding
    1 … E              encoder layers
    E + 1              slot embedding (and the encoder's last LayerNorm)
    E + 2 … E + D + 1  decoder layers
    E + D + 2          head (the decoder's last LayerNorm, output projection and losses, length head)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from janus_pt.config.schema import ModelConfig

DECODER_SLOTS, CONTENT_SLOTS, PREDICTED_SLOTS = 3.6, 2.3, 1.6
"""Slots for each source token in pretraining: all, those that are keys, and those that predict."""


def layer_costs(model: ModelConfig) -> list[float]:
    """Multiply-adds of each layer of the chain for each source token; attention's score products left out."""
    d = model.hidden_size
    tokenwise = (
        2 * d * d + 2 * d * model.ffn_hidden_size
    )  # query and output projections, feed-forward network
    encoder = tokenwise + 2 * d * d
    decoder = DECODER_SLOTS * (tokenwise + 2 * d * d) + (CONTENT_SLOTS + 1) * 2 * d * d
    decoder += (DECODER_SLOTS + CONTENT_SLOTS) * 2 * d * d * model.causal_self_attention
    head = PREDICTED_SLOTS * d * model.vocab_size
    return [
        0.0,
        *[float(encoder)] * model.encoder_layers,
        0.0,
        *[decoder] * model.decoder_layers,
        head,
    ]


def stage_bounds(model: ModelConfig, stages: int) -> list[int]:
    """First layer of every stage, and the number of layers at the end: `[stages + 1]`.

    Every stage has an encoder or decoder layer: one without LayerNorms and biases would make one reduction of
    gradient norms less than the others (DeepSpeed makes one for each group of the optimizer) and hang them.
    """
    encoder, decoder, costs = model.encoder_layers, model.decoder_layers, layer_costs(model)
    # The first embedding goes with the first encoder layer, the second with the first decoder layer, the head with the
    # last one.
    starts = [
        0,
        *range(2, encoder + 1),
        encoder + 1,
        *range(encoder + 3, encoder + decoder + 2),
        len(costs),
    ]
    bounds = balanced([sum(costs[start:stop]) for start, stop in pairwise(starts)], stages)
    return [starts[bound] for bound in bounds]


def pipeline_layers(model: ModelConfig, stages: int) -> list[range]:
    """The layers of every stage."""
    return [range(start, stop) for start, stop in pairwise(stage_bounds(model, stages))]


def balanced(costs: Sequence[float], parts: int) -> list[int]:
    """Cut a row of costs into parts, none empty, so that the costliest part is as cheap as can be.

    Returns the first index of every part, and the number of costs at the end. Exact, by dynamic programming over
    (parts, costs).
    """
    sums = [0.0, *accumulate(costs)]
    count = len(costs)
    best = {
        (0, 0): (0.0, 0)
    }  # (parts, costs) -> cost of the costliest of these parts, where the last one begins
    for part in range(1, parts + 1):
        for stop in range(part, count - (parts - part) + 1):
            best[part, stop] = min(
                (max(best[part - 1, start][0], sums[stop] - sums[start]), start)
                for start in range(part - 1, stop)
                if (part - 1, start) in best
            )
    bounds = [count]
    for part in range(parts, 0, -1):
        bounds.append(best[part, bounds[-1]][1])
    return bounds[::-1]
