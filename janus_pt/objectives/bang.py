"""BANG's pretraining (Qi et al. 2021): every distance between left-to-right and all at once.

Predicting streams stand beside the true tokens; stream i predicts a token while the i - 1 tokens
before it are hidden. The first is P_AR, the last ones come near P_NAR; none reads anything to its
right."""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.base import MaskedPair, Objective, SlotCounts
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import causal_slots
from janus_pt.packing.example import Example, IntArray, SlotArray
from janus_pt.packing.slots import CAUSAL, MASK_RANK, NEVER, make_slots


def stream_names(streams: int) -> tuple[str, ...]:
    """`ar`, then `hidden1` … by the number of hidden tokens."""
    return ("ar", *(f"hidden{hidden}" for hidden in range(1, streams)))


def terms(config: ObjectiveConfig) -> Terms:
    """A cross-entropy for each stream."""
    return Terms(stream_names(config.bang_streams), (), config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """The mean over streams; no length is predicted."""
    streams = config.bang_streams
    return [1 / streams] * streams + [0.0]


def example(pair: MaskedPair, model: ModelConfig, config: ObjectiveConfig) -> Example:
    """The true tokens and all streams' slots; no position is masked.

    Targets are ordered from the last token to the first, so that every stream predicts a prefix:
    stream i has none for the first i - 1 tokens."""
    target, streams = pair.target, config.bang_streams
    last = len(target) - 1
    content, _ = causal_slots(target, model)
    slots, first_of_diagonal = diagonal_slots(last, streams, model)
    no_query = content[:0]
    predict = {}
    for hidden, stream in enumerate(stream_names(streams)):
        # Token t is predicted on diagonal t - 1 - hidden, by the slot behind `hidden` others.
        diagonals = np.arange(last - 1 - hidden, -1, -1)
        predict[stream] = len(content) + first_of_diagonal[diagonals] + hidden
    contents = np.concatenate((content, slots))
    return Example(pair.source, contents, no_query, target[:0:-1], predict, len(target))


def diagonal_slots(last: int, streams: int, model: ModelConfig) -> tuple[SlotArray, IntArray]:
    """The predicting slots, diagonal by diagonal, and the index of each diagonal's first.

    A *diagonal* d holds the slots that read the true tokens 0 … d and no more: number i of it, of
    stream i, predicts token d + i and also reads the slots before it on its diagonal, which stand
    for the tokens hidden in between. All slots are keys; slots of diagonal d have the ranks from
    MASK_RANK + d · streams on."""
    assert MASK_RANK + last * streams < NEVER
    # Near the end of the target a diagonal has fewer slots: there is nothing left to predict.
    sizes = np.minimum(streams, last - np.arange(last))
    first = np.cumsum(sizes) - sizes
    diagonal = np.repeat(np.arange(last), sizes)
    hidden = np.arange(len(diagonal)) - first[diagonal]
    start = MASK_RANK + diagonal * streams
    rank = start + hidden
    position = diagonal + hidden + model.ar_position_offset
    slots = make_slots(
        model.mask_token_id,
        position,
        CAUSAL,
        rank,
        until=diagonal + 1,
        start=start,
        stop=rank + 1,
    )
    return slots, first


def expected_slots(
    target: int, masked: float, model: ModelConfig, config: ObjectiveConfig
) -> SlotCounts:
    """Stream i lacks the first i - 1 tokens."""
    content = target - 1
    predicted = sum(max(0, content - hidden) for hidden in range(config.bang_streams))
    return SlotCounts(causal_content=content + predicted, predicted=predicted)


OBJECTIVE = Objective(terms, example, expected_slots, weights=weights)
