"""Which layers a pipeline stage holds: a pure function of the model's shape.

Layers are numbered as in `model/layer_numbers.py`. What each costs, the blocks say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import cast

from janus_pt.config.schema import ModelConfig
from janus_pt.model.blocks import DecoderLayer, EncoderLayer
from janus_pt.model.cost import Cost, Workload
from janus_pt.model.layer_numbers import (
    FIRST_ENCODER_LAYER,
    SOURCE_EMBEDDING,
    first_decoder_layer,
    head_layer,
    slot_embedding,
)
from janus_pt.model.meta import build_on_meta
from janus_pt.model.transformer import JanusTransformer

PRETRAINING = Workload(source_tokens=10, content_slots=23, query_slots=13, predicted_slots=16)
"""Slots for ten source tokens in pretraining: whole numbers, so that equal costs are equal to the last bit.

Lengths are 0: the scores of attention are not counted."""


@lru_cache(maxsize=64)
def one_layer_each(model: ModelConfig) -> JanusTransformer:
    """The model on the meta device with one encoder and one decoder layer. Not to be changed."""
    # All layers of a stack are identical. A thousand of them would take seconds to make.
    return build_on_meta(model.model_copy(update={"encoder_layers": 1, "decoder_layers": 1}))


def layer_costs(model: ModelConfig, work: Workload) -> list[Cost]:
    """What each layer of the model costs for `work`, in the order of `layer_numbers`."""
    sketch = one_layer_each(model)
    encoder_layer, decoder_layer = _layers(sketch)
    encoder_norm = sketch.encoder.norm_cost(work.source_tokens)
    return [
        sketch.encoder.embedding_cost(work.source_tokens),
        *[encoder_layer.cost(work)] * model.encoder_layers,
        sketch.decoder.embedding_cost(work.slots) + encoder_norm,
        *[decoder_layer.cost(work, is_last=False)] * (model.decoder_layers - 1),
        decoder_layer.cost(work, is_last=True),
        sketch.head_cost(work),
    ]


def relative_costs(model: ModelConfig) -> list[float]:
    """Multiply-adds of each layer for each source token in pretraining; stages are balanced by them."""
    sketch = one_layer_each(model)
    encoder_layer, decoder_layer = _layers(sketch)
    encoder = encoder_layer.cost(PRETRAINING).multiply_adds
    # The last layer weighs as much as the others here, though it computes fewer slots.
    decoder = decoder_layer.cost(PRETRAINING, is_last=False).multiply_adds
    head = sketch.head_cost(PRETRAINING).multiply_adds
    return [0.0, *[encoder] * model.encoder_layers, 0.0, *[decoder] * model.decoder_layers, head]


def _layers(sketch: JanusTransformer) -> tuple[EncoderLayer, DecoderLayer]:
    return cast(EncoderLayer, sketch.encoder.layers[0]), cast(
        DecoderLayer, sketch.decoder.layers[0]
    )


def stage_bounds(model: ModelConfig, stages: int) -> list[int]:
    """First layer of every stage, and the number of layers at the end: `[stages + 1]`.

    Every stage has an encoder or decoder layer: one without norms and biases would make one
    reduction of gradient norms less than the others (DeepSpeed makes one for each group of the
    optimizer) and hang them.
    """
    costs = relative_costs(model)
    # A stage may begin at any encoder or decoder layer but the first ones: the source embedding goes
    # with the first encoder layer, the slot embedding with the first decoder layer, and the head with
    # the last.
    starts = [
        SOURCE_EMBEDDING,
        *range(FIRST_ENCODER_LAYER + 1, slot_embedding(model)),
        slot_embedding(model),
        *range(first_decoder_layer(model) + 1, head_layer(model)),
        len(costs),
    ]
    block_costs = [sum(costs[start:stop]) for start, stop in pairwise(starts)]
    return [starts[bound] for bound in balanced(block_costs, stages)]


def pipeline_layers(model: ModelConfig, stages: int) -> list[range]:
    """The layers of every stage."""
    return [range(start, stop) for start, stop in pairwise(stage_bounds(model, stages))]


def balanced(costs: Sequence[float], parts: int) -> list[int]:
    """Cut a list of costs into `parts` parts, none empty, so that the largest part is smallest.

    Returns the first index of every part, and the number of costs at the end. Exact, by dynamic
    programming over (parts, costs).
    """
    count = len(costs)
    sums = [0.0, *accumulate(costs)]
    # (parts, costs) -> cost of the largest of these parts, and where the last one begins.
    best = {(0, 0): (0.0, 0)}
    for part in range(1, parts + 1):
        # Enough costs must be left that no later part is empty.
        for stop in range(part, count - (parts - part) + 1):
            candidates = []
            for start in range(part - 1, stop):
                if (part - 1, start) in best:
                    largest_before, _ = best[part - 1, start]
                    largest = max(largest_before, sums[stop] - sums[start])
                    candidates.append((largest, start))
            best[part, stop] = min(candidates)
    # Walk back from the end: each part begins where the one before it ends.
    bounds = [count]
    for part in range(parts, 0, -1):
        _, start = best[part, bounds[-1]]
        bounds.append(start)
    return bounds[::-1]
