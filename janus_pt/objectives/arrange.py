"""Where the slots of a batch's examples stand in its rows.

A row has up to four blocks: the contents of the two sides (causal and masked segments), then their queries. Sides never
meet, so attention is computed block by block and no quadrant of the mask is wasted. Slots that predict stand at the end
of their block, contents are padded on the left, and the side that predicts more stands behind the other: what the last
layer has to compute is one stretch at the end of the row. The queries' sides come in the opposite order, next to
their contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_pt.slots import SEGMENT, Tile

if TYPE_CHECKING:
    from janus_pt.objectives.batch import Example

IntArray = np.ndarray[Any, np.dtype[Any]]
BLOCKS = 4


@dataclass(frozen=True)
class Arrangement:
    """`columns[example]` holds the place in the row of each of its contents and queries; see `Slots` for the rest."""

    columns: list[IntArray]
    width: int
    num_content: int
    first_predicting: int
    tiles: tuple[Tile, ...]


def arrange(examples: Sequence[Example]) -> Arrangement:
    """Lay out the examples, one a row."""
    sides = [np.concatenate((e.content, e.query))[:, SEGMENT] & 1 for e in examples]
    predicts = [_predicting(e) for e in examples]
    content_sides = np.concatenate([side[: len(e.content)] for e, side in zip(examples, sides, strict=True)])
    content_predicts = np.concatenate([p[: len(e.content)] for e, p in zip(examples, predicts, strict=True)])
    shares = [content_predicts[content_sides == side].mean() if (content_sides == side).any() else 0 for side in (0, 1)]
    place = np.array([0, 1]) if shares[0] <= shares[1] else np.array([1, 0])
    blocks = []
    for example, side in zip(examples, sides, strict=True):
        query = np.arange(len(side)) >= len(example.content)
        blocks.append(np.where(query, BLOCKS - 1 - place[side], place[side]))
    counts = np.array([np.bincount(block, minlength=BLOCKS) for block in blocks])
    widths = counts.max(axis=0)
    starts = np.concatenate(([0], np.cumsum(widths)))
    columns = [
        _columns(block, predicting, count, np.where(np.arange(BLOCKS) < 2, starts[1:] - count, starts[:-1]))
        for block, predicting, count in zip(blocks, predicts, counts, strict=True)
    ]
    first = min(int(column[predicting].min()) for column, predicting in zip(columns, predicts, strict=True))
    return Arrangement(columns, int(starts[-1]), int(starts[2]), first, _tiles(starts.tolist()))


def _predicting(example: Example) -> IntArray:
    """Which contents and queries predict, boolean."""
    predicting = np.zeros(len(example.content) + len(example.query), dtype=bool)
    for index in example.predict.values():
        predicting[index] = True
    return predicting


def _columns(block: IntArray, predicting: IntArray, count: IntArray, begins: IntArray) -> IntArray:
    order = np.lexsort((predicting, block))
    before = np.cumsum(count) - count
    columns = np.empty(len(block), dtype=np.int64)
    columns[order] = np.arange(len(block)) + (begins - before)[block[order]]
    return columns


def _tiles(starts: list[int]) -> tuple[Tile, ...]:
    """The blocks of the attention that are not empty; none if there is but one side."""
    first, second = (0, starts[1]), (starts[1], starts[2])
    if first[0] == first[1] or second[0] == second[1]:
        return ()
    middle, end = starts[3], starts[4]
    tiles = ((*first, *first), (starts[1], middle, *second), (middle, end, *first))
    return tuple(tile for tile in tiles if tile[0] < tile[1])
