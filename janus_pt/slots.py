"""Slots: the packed decoder sequence, and the one visibility function.

A *slot* is one place in the decoder's input. All streams of all objectives are slots of one sequence; what a
slot may read is decided by a few small integers, never by a stored matrix.

Content slots come first in the sequence and are the only keys and values; query slots follow and only read.

field     meaning
--------  ----------------------------------------------------------------------------------------------------
token     token id
position  row of the position table
segment   slots meet only inside their segment; sample s of a row uses segments 2s (causal) and 2s + 1 (masked);
          -1 is padding
rank      of a content slot: its place on the segment's rank line
until     the slot reads keys of rank in [0, until) ...
start     ... and in [start, stop)
stop
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIELDS = ("token", "position", "segment", "rank", "until", "start", "stop")
TOKEN, POSITION, SEGMENT, RANK, UNTIL, START, STOP = range(len(FIELDS))

MASK_RANK = 1 << 20
"""Mask symbols that are keys have ranks from here on: the interval [start, stop) addresses them alone."""
NEVER = 1 << 21
"""Above every rank: the end of an interval that is open to the right."""

CAUSAL, MASKED = 0, 1
"""The two segments of a sample: slots that read only the past, and slots that read both sides."""

Tile = tuple[int, int, int, int]
"""A block of the attention: the slots `[first, last)` read contents `[first, last)`."""
SlotArray = np.ndarray[Any, np.dtype[np.int32]]


def visible(query_segment: Any, until: Any, start: Any, stop: Any, key_segment: Any, key_rank: Any) -> Any:
    """Whether a slot may read a key; elementwise on whatever broadcasts (arrays, FlexAttention's scalars)."""
    known = (key_rank >= 0) & (key_rank < until)
    masks = (key_rank >= start) & (key_rank < stop)
    return (query_segment == key_segment) & (known | masks)


def make_slots(
    token: Any, position: Any, segment: int, rank: Any = -1, until: Any = 0, start: Any = 0, stop: Any = 0
) -> SlotArray:
    """Slots `[length, 7]` of one sample; every field is an array `[length]` or one number for all slots."""
    table = np.empty((np.size(position), len(FIELDS)), dtype=np.int32)
    for column, values in enumerate((token, position, segment, rank, until, start, stop)):
        table[:, column] = values
    return table


PADDING = make_slots(0, 0, -1, rank=0, until=1)[0]
"""A padding slot reads the row's other padding, so that no row of the attention is empty."""


@dataclass(frozen=True)
class Slots:
    """A batch of packed decoder sequences: all that the model knows of an objective.

    `table` is `[batch, slots, 7]` int32 in the order of `FIELDS`; the first `num_content` slots of every row are
    the content slots. No slot before `first_predicting` predicts: the last layer leaves them out. If there are
    `tiles`, no slot reads outside of them.
    """

    table: Tensor
    num_content: int
    first_predicting: int = 0
    tiles: tuple[Tile, ...] = ()

    def __getitem__(self, field: int) -> Tensor:
        return self.table[..., field]

    def to(self, device: torch.device) -> Slots:
        """The same slots on another device; the copy is asynchronous from pinned memory."""
        return replace(self, table=self.table.to(device, non_blocking=True))

    @property
    def samples(self) -> Tensor:
        """The sample of its row that each slot belongs to, `[batch, slots]`; -1 at padding."""
        return self.table[..., SEGMENT] >> 1


@dataclass(frozen=True)
class Source:
    """A batch of encoder inputs; all tensors `[batch, length]`, `samples` is -1 at padding."""

    tokens: Tensor
    positions: Tensor
    samples: Tensor

    def to(self, device: torch.device) -> Source:
        """The same source on another device; the copy is asynchronous from pinned memory."""
        tokens, positions, samples = (
            t.to(device, non_blocking=True) for t in (self.tokens, self.positions, self.samples)
        )
        return Source(tokens, positions, samples)


def pad_sources(sequences: list[Any], pad_token_id: int) -> Source:
    """One source a row, padded on the right to the longest; `sequences` are 1-d integer arrays."""
    lengths = np.array([len(s) for s in sequences])
    columns = np.arange(lengths.max(initial=1))
    inside = columns < lengths[:, None]
    tokens = np.full(inside.shape, pad_token_id, dtype=np.int32)
    tokens[inside] = np.concatenate(sequences)
    positions = np.where(inside, columns, 0).astype(np.int32)
    samples = np.where(inside, 0, -1).astype(np.int32)
    return Source(torch.from_numpy(tokens), torch.from_numpy(positions), torch.from_numpy(samples))
