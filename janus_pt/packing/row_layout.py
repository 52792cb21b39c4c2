"""Where the slots of a batch's examples stand in its one row.

Contents come first, as only they are keys, and slots that predict come last, as only they are
computed in the last layer. Inside each of these sections, the slots of one side of a sample stand
together, so that most blocks of the mask are empty. Each section ends with a little padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from janus_pt.packing.example import Example, IntArray
from janus_pt.packing.padded import round_to_row_step, stable_argsort
from janus_pt.packing.slots import SEGMENT

CONTENT, PREDICTING_CONTENT, QUERY = 0, 1, 2
"""The sections of a row, in their order."""
NUM_SECTIONS = 3
NUM_SIDES = 2


@dataclass(frozen=True)
class RowLayout:
    """The row of some examples; see `Slots` for `num_content` and `first_predicting`.

    positions: for each example where its contents, then its queries stand.
    width: slots of the row, with padding.
    """

    positions: list[IntArray]
    width: int
    num_content: int
    first_predicting: int


def pack_row(
    examples: Sequence[Example], round_length: Callable[[int], int] = round_to_row_step
) -> RowLayout:
    """Lay out the examples. All their queries predict. `round_length` pads a section's length."""
    sizes = [len(example.content) + len(example.query) for example in examples]
    sample = np.repeat(np.arange(len(examples)), sizes)
    side = np.concatenate([_sides(example) for example in examples])
    section = np.concatenate([_sections(example) for example in examples])
    # One sort key a slot: section of the row, then side, then sample. The sort is stable: slots of
    # a sample keep their order.
    key = (section * NUM_SIDES + side) * len(examples) + sample
    order = stable_argsort(key, NUM_SECTIONS * NUM_SIDES * len(examples))
    # The padding before a section shifts its slots.
    section_sizes = np.bincount(section, minlength=NUM_SECTIONS)
    padded_sizes = [round_length(size) for size in section_sizes]
    padded_start = np.cumsum([0, *padded_sizes])
    unpadded_start = np.cumsum(section_sizes) - section_sizes
    shift = padded_start[:-1] - unpadded_start
    # In sorted order a slot stands at its rank, moved by the padding before its section.
    rank = np.arange(len(order))
    position = np.empty(len(order), dtype=np.int64)
    position[order] = rank + shift[section[order]]
    return RowLayout(
        positions=np.split(position, np.cumsum(sizes)[:-1]),
        width=int(padded_start[-1]),
        num_content=int(padded_start[QUERY]),
        first_predicting=int(padded_start[PREDICTING_CONTENT]),
    )


def _sides(example: Example) -> IntArray:
    """`CAUSAL` or `MASKED` of each slot, contents first."""
    segments = np.concatenate((example.content[:, SEGMENT], example.query[:, SEGMENT]))
    return segments & 1


def _sections(example: Example) -> IntArray:
    """The section of the row that each slot belongs to, contents first."""
    num_content = len(example.content)
    sections = np.full(num_content + len(example.query), CONTENT)
    sections[num_content:] = QUERY
    for slots in example.predict.values():
        sections[slots[slots < num_content]] = PREDICTING_CONTENT
    return sections
