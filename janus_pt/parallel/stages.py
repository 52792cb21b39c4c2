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

from janus_pt.config import ModelConfig

DECODER_SLOTS, CONTENT_SLOTS, PREDICTED_SLOTS = 3.6, 2.3, 1.6
"""Slots for each source token in pretraining: all, those that are keys, and those that predict."""


def layer_costs(model: ModelConfig) -> list[float]:
    """Multiply-adds of each layer of the chain for each source token; attention's score products left out."""
    d = model.hidden_size
    tokenwise = 2 * d * d + 2 * d * model.ffn_hidden_size  # query and output projections, feed-forward network
    encoder = tokenwise + 2 * d * d
    decoder = DECODER_SLOTS * (tokenwise + 2 * d * d) + (CONTENT_SLOTS + 1) * 2 * d * d
    head = PREDICTED_SLOTS * d * model.vocab_size
    return [0.0, *[float(encoder)] * model.encoder_layers, 0.0, *[decoder] * model.decoder_layers, head]


def stage_bounds(costs: Sequence[float], stages: int) -> list[int]:
    """First layer of every stage, and the number of layers at the end: `[stages + 1]`, no stage empty.

    The costliest stage is as cheap as can be: exact, by dynamic programming over (stages, layers).
    """
    sums = [0.0, *accumulate(costs)]
    count = len(costs)
    best = {(0, 0): (0.0, 0)}  # (stages, layers) -> cost of the costliest of these stages, where the last one begins
    for stage in range(1, stages + 1):
        for stop in range(stage, count - (stages - stage) + 1):
            best[stage, stop] = min(
                (max(best[stage - 1, start][0], sums[stop] - sums[start]), start)
                for start in range(stage - 1, stop)
                if (stage - 1, start) in best
            )
    bounds = [count]
    for stage in range(stages, 0, -1):
        bounds.append(best[stage, bounds[-1]][1])
    return bounds[::-1]


def chain(model: ModelConfig, stages: int) -> list[range]:
    """The layers of every stage."""
    return [range(start, stop) for start, stop in pairwise(stage_bounds(layer_costs(model), stages))]
