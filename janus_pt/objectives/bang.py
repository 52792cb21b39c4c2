"""BANG's pretraining (Qi et al. 2021): every distance between left-to-right and all at once.

`streams` predicting streams stand beside the true tokens; stream i predicts a token while the i - 1 tokens before it
are hidden. The first is P_AR, the last ones come near P_NAR; none reads anything to its right.
"""

from __future__ import annotations

import numpy as np

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.objectives.fused_loss import Terms
from janus_pt.objectives.janus import causal_slots
from janus_pt.packing.batch import Example, IntArray
from janus_pt.packing.slots import CAUSAL, MASK_RANK, NEVER, make_slots


def terms(config: ObjectiveConfig) -> Terms:
    """A cross-entropy for each stream: `ar`, then `hidden1` … by the number of hidden tokens."""
    hidden = (f"hidden{number}" for number in range(1, config.bang_streams))
    return Terms(("ar", *hidden), (), config.label_smoothing)


def weights(config: ObjectiveConfig) -> list[float]:
    """Weights in the order of `terms(config).names`, the length's last: the mean over streams, and no length."""
    return [1 / config.bang_streams] * config.bang_streams + [0.0]


def example(
    source: IntArray,
    target: IntArray,
    masked: IntArray,
    mask_token_id: int,
    position_offset: int,
    streams: int,
) -> Example:
    """The true tokens and all streams' slots; `masked` has no part in it.

    A *diagonal* d holds the slots that read the true tokens 0 … d and no more: number i of it, of stream i, predicts
    token d + i and also reads the slots before it on its diagonal, which stand for the tokens hidden in between. All
    slots are keys; those of diagonal d have the ranks from MASK_RANK + d · streams on. Targets are ordered from the
    last token to the first, so that every stream predicts a prefix: stream i has none for the first i - 1 tokens.
    """
    last = len(target) - 1
    assert MASK_RANK + last * streams < NEVER
    content, _ = causal_slots(target, mask_token_id, position_offset)
    sizes = np.minimum(streams, last - np.arange(last))
    diagonal = np.repeat(np.arange(last), sizes)
    begins = np.cumsum(sizes) - sizes
    number = np.arange(len(diagonal)) - begins[diagonal]  # stream - 1
    start = MASK_RANK + diagonal * streams
    position, rank = diagonal + number + position_offset, start + number
    slots = make_slots(
        mask_token_id, position, CAUSAL, rank, until=diagonal + 1, start=start, stop=rank + 1
    )
    predict = {}
    for hidden, stream in enumerate(["ar", *(f"hidden{n}" for n in range(1, streams))]):
        diagonals = np.arange(last - 1 - hidden, -1, -1)
        predict[stream] = last + begins[diagonals] + hidden
    return Example(
        source, np.concatenate((content, slots)), content[:0], target[:0:-1], predict, len(target)
    )
