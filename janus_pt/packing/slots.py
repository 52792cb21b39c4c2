"""Slots: the packed decoder sequence, and the one visibility function.

A *slot* is one place in the decoder's input. All streams of all objectives are slots of one
sequence; a few small integers decide what a slot may read, never a stored matrix.

Content slots come first in the sequence and are the only keys and values; query slots follow and
only read. All samples of a batch share one sequence, both source and slots.

field     meaning
--------  ------------------------------------------------------------------------------------------
token     token id
position  row of the position table
segment   slots meet only inside their segment; sample s of a row uses segments 2s (causal) and
          2s + 1 (masked); -1 is padding, which reads nothing
rank      of a content slot: its place on the segment's rank line
until     the slot reads keys of rank in [0, until) ...
start     ... and in [start, stop)
stop
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_pt.packing.buffer import map_leaves
from janus_pt.packing.example import IntArray, SlotArray
from janus_pt.packing.padded import PaddedLayout, make_padded_layout, round_to_row_step

FIELDS = ("token", "position", "segment", "rank", "until", "start", "stop")
TOKEN, POSITION, SEGMENT, RANK, UNTIL, START, STOP = range(len(FIELDS))

MASK_RANK = 1 << 20
"""Mask symbols that are keys have ranks from here on: the interval [start, stop) addresses them
alone."""
NEVER = 1 << 21
"""Above every rank: the end of an interval that is open to the right."""

CAUSAL, MASKED = 0, 1
"""The two segments of a sample: slots that read only the past, and slots that read both sides."""


def visible(
    query_segment: Any, until: Any, start: Any, stop: Any, key_segment: Any, key_rank: Any
) -> Any:
    """Whether a slot may read a key; elementwise on whatever broadcasts (arrays, FlexAttention's
    scalars)."""
    known = (key_rank >= 0) & (key_rank < until)
    masks = (key_rank >= start) & (key_rank < stop)
    return (query_segment == key_segment) & (known | masks)


def make_slots(
    token: Any,
    position: Any,
    segment: int,
    rank: Any = -1,
    until: Any = 0,
    start: Any = 0,
    stop: Any = 0,
) -> SlotArray:
    """Slots `[length, 7]` of one sample; every field is an array `[length]` or one number for all
    slots."""
    table = np.empty((np.size(position), len(FIELDS)), dtype=np.int32)
    for column, values in enumerate((token, position, segment, rank, until, start, stop)):
        table[:, column] = values
    return table


PADDING = make_slots(0, 0, -1)[0]


Blocks = dict[str, Tensor]
"""Which blocks of a mask FlexAttention reads: the tensors of a `BlockMask`, by their names there."""


@dataclass(frozen=True)
class SlotBlocks:
    """What FlexAttention's masks of a row are made of; `model/block_masks.py` fills and reads it.

    columns: the slots' table, a contiguous row a field: `[7, slots]`.
    own: blocks of the masks by which the slots from a first one on read contents, by that first slot
        and by whether nothing to the right is read. source: by which they read the source, likewise.
    """

    columns: Tensor
    own: dict[tuple[int, bool], Blocks]
    source: dict[int, Blocks]


@dataclass(frozen=True)
class Slots:
    """A batch of packed decoder sequences in one row: all that the model knows of an objective.

    table: `[1, slots, 7]` int32 in the order of `FIELDS`.
    num_content: the first slots, which are the content slots.
    first_predicting: no slot before this one predicts, so the last layer skips them.
    query_layout, predicting_layout, key_layout: all slots; the slots from `first_predicting` on,
        counted from there; and the content slots. Each has a part for each side in use.
    blocks: if they were prepared. Columns of tokens may differ from the table's, which is newer.
    """

    table: Tensor
    num_content: int
    first_predicting: int
    query_layout: PaddedLayout
    predicting_layout: PaddedLayout
    key_layout: PaddedLayout
    blocks: SlotBlocks | None = None

    def __getitem__(self, field: int) -> Tensor:
        return self.table[..., field]

    @property
    def samples(self) -> Tensor:
        """The sample that each slot belongs to, `[1, slots]`; -1 at padding."""
        return self.table[..., SEGMENT] >> 1


def pack_slots(
    table: SlotArray,
    num_content: int,
    first_predicting: int = 0,
    num_samples: int | None = None,
) -> Slots:
    """Slots with the layouts that follow from their table `[slots, 7]`, contents first.

    All samples must have contents on the same sides. With `num_samples` the layouts have as many, the
    last ones of them empty.
    """
    samples = table[:, SEGMENT] >> 1
    sides = table[:, SEGMENT] & 1
    is_sample = samples[:num_content] >= 0
    used_sides = np.unique(sides[:num_content][is_sample])
    # Sides are numbered among those in use, so that an objective of one side has one part.
    part = np.searchsorted(used_sides, sides)
    if num_samples is None:
        num_samples = int(samples.max()) + 1

    def layout(rows: slice) -> PaddedLayout:
        return make_padded_layout(samples[rows], part[rows], num_samples, len(used_sides))

    query_layout = layout(slice(None))
    key_layout = layout(slice(num_content))
    for queries, keys in zip(query_layout.indices, key_layout.indices, strict=True):
        # Elements are on the left: a row of the part is empty if its first element is -1.
        no_queries = queries[:, 0] < 0
        some_keys = keys[:, 0] >= 0
        # A softmax over no key at all would be NaN.
        assert (no_queries | some_keys).all(), "a slot's side has nothing to read"
    return Slots(
        torch.from_numpy(table)[None],
        num_content,
        first_predicting,
        query_layout,
        predicting_layout=layout(slice(first_predicting, None)),
        key_layout=key_layout,
    )


@dataclass(frozen=True)
class Source:
    """A batch of encoder inputs; all tensors `[rows, length]`, `samples` is -1 at padding.

    In training all samples are packed in one row, with a layout of one part. In decoding each has a
    row to itself. `blocks` are of the mask by which tokens read their sample, if they were prepared.
    `is_padded`: whether any row has padding; None: nobody has looked.
    """

    tokens: Tensor
    positions: Tensor
    samples: Tensor
    layout: PaddedLayout | None = None
    blocks: Blocks | None = None
    is_padded: bool | None = None

    def to(self, device: torch.device) -> Source:
        """The same source on another device; the copy is asynchronous from pinned memory."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        moved: Source = map_leaves(self, Tensor, move)
        return moved


def pack_sources(
    sequences: Sequence[IntArray],
    round_length: Callable[[int], int] = round_to_row_step,
    num_samples: int | None = None,
) -> Source:
    """All sources in one row; `sequences` are 1-d integer arrays, none empty.

    `round_length` pads the row. With `num_samples` the layout has as many, the last ones of them empty.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    count = int(lengths.sum())
    width = round_length(count)
    tokens = np.zeros(width, dtype=np.int32)
    tokens[:count] = np.concatenate(sequences)
    # Positions begin at 0 again in each sample.
    first_of_sample = np.cumsum(lengths) - lengths
    positions = np.zeros(width, dtype=np.int32)
    positions[:count] = np.arange(count) - np.repeat(first_of_sample, lengths)
    samples = np.full(width, -1, dtype=np.int32)
    samples[:count] = np.repeat(np.arange(len(lengths)), lengths)
    one_group = np.zeros_like(samples)
    return Source(
        torch.from_numpy(tokens)[None],
        torch.from_numpy(positions)[None],
        torch.from_numpy(samples)[None],
        make_padded_layout(samples, one_group, num_samples or len(lengths), 1),
    )


def pad_sources(sequences: Sequence[IntArray], pad_token_id: int) -> Source:
    """One source a row, padded on the right to the longest; `sequences` are 1-d integer arrays."""
    lengths = np.array([len(sequence) for sequence in sequences])
    columns = np.arange(lengths.max(initial=1))
    is_token = columns < lengths[:, None]
    tokens = np.full(is_token.shape, pad_token_id, dtype=np.int32)
    tokens[is_token] = np.concatenate(sequences)
    positions = np.where(is_token, columns, 0).astype(np.int32)
    samples = np.where(is_token, 0, -1).astype(np.int32)
    return Source(
        torch.from_numpy(tokens),
        torch.from_numpy(positions),
        torch.from_numpy(samples),
        is_padded=not is_token.all(),
    )
