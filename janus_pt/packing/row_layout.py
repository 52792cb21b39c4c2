"""Where the slots of a batch's examples stand in its one row.

Contents come first, as only they are keys, and slots that predict come last, as only they are
computed in the last layer. Inside of these stretches a side of a sample is one run of slots, so
that most blocks of the mask are empty. Each stretch ends with a little padding, up to a multiple of
`ROW_STEP`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus_pt.packing.example import Example, IntArray
from janus_pt.packing.padded import ROW_STEP, round_up, stable_argsort
from janus_pt.packing.slots import SEGMENT

NOT_PREDICTING, PREDICTING, QUERY, STRETCHES = range(4)


@dataclass(frozen=True)
class RowLayout:
    """`columns[example]` holds the place in the row of each of its contents and queries; see
    `Slots` for the rest."""

    columns: list[IntArray]
    width: int
    num_content: int
    first_predicting: int


def pack_row(examples: Sequence[Example]) -> RowLayout:
    """Lay out the examples; all their queries predict."""
    sides = [np.concatenate((e.content[:, SEGMENT], e.query[:, SEGMENT])) & 1 for e in examples]
    sizes = [len(side) for side in sides]
    stretch = np.concatenate([_stretches(example) for example in examples])
    runs = (2 * stretch + np.concatenate(sides)) * len(sizes) + np.repeat(
        np.arange(len(sizes)), sizes
    )
    order = stable_argsort(runs, 2 * STRETCHES * len(sizes))
    counts = np.bincount(stretch, minlength=STRETCHES)
    starts = np.cumsum([0, *(round_up(count, ROW_STEP) for count in counts)])
    places = np.empty(len(order), dtype=np.int64)
    places[order] = (
        np.arange(len(order)) + (starts[:-1] - np.cumsum(counts) + counts)[stretch[order]]
    )
    columns = np.split(places, np.cumsum(sizes)[:-1])
    return RowLayout(columns, int(starts[-1]), int(starts[QUERY]), int(starts[PREDICTING]))


def _stretches(example: Example) -> IntArray:
    count = len(example.content)
    stretches = np.full(count + len(example.query), NOT_PREDICTING)
    stretches[count:] = QUERY
    for index in example.predict.values():
        stretches[index[index < count]] = PREDICTING
    return stretches
