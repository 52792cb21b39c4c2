"""Where the slots of a batch's examples stand in its one row.

Contents come first, as only they are keys, and slots that predict come last, as only they are computed in the last
layer. Inside of these stretches a side of a sample is one run of slots, so that most blocks of the mask are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from janus_pt.grids import IntArray
from janus_pt.slots import SEGMENT

if TYPE_CHECKING:
    from janus_pt.objectives.batch import Example


NOT_PREDICTING, PREDICTING, QUERY = range(3)
"""The stretches of a row."""


def arrange(examples: Sequence[Example]) -> tuple[list[IntArray], int]:
    """For each example the places of its contents and queries, and the first place that predicts; all queries do."""
    stretches = [_stretches(example) for example in examples]
    sides = [np.concatenate((e.content, e.query))[:, SEGMENT] & 1 for e in examples]
    sizes = [len(side) for side in sides]
    stretch = np.concatenate(stretches)
    order = np.lexsort((np.repeat(np.arange(len(sizes)), sizes), np.concatenate(sides), stretch))
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return np.split(places, np.cumsum(sizes)[:-1]), int(np.count_nonzero(stretch == NOT_PREDICTING))


def _stretches(example: Example) -> IntArray:
    count = len(example.content)
    stretches = np.full(count + len(example.query), NOT_PREDICTING)
    stretches[count:] = QUERY
    for index in example.predict.values():
        stretches[index[index < count]] = PREDICTING
    return stretches
