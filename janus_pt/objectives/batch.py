"""Examples, and batches of them: padded slots and the places that predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_pt.objectives.arrange import arrange
from janus_pt.slots import PADDING, TOKEN, SlotArray, Slots, Source, pad_sources

IntArray = np.ndarray[Any, np.dtype[Any]]
CORRECTED = "corrected"
"""The stream that predicts the last of a list of targets; all others predict the first ones."""


@dataclass(frozen=True)
class Example:
    """One sample as numpy arrays.

    source: `[length]` token ids; content, query: slots `[n, 7]`; targets: the predicted tokens `[rows]`, ordered so
    that every stream predicts a prefix of them (`CORRECTED` the last ones); predict: for each stream the slots that
    do, `[rows of the stream]`, content slots counted from 0 and query slots after them; length: target tokens with bos
    and eos.
    """

    source: IntArray
    content: SlotArray
    query: SlotArray
    targets: IntArray
    predict: Mapping[str, IntArray]
    length: int


@dataclass(frozen=True)
class Batch:
    """Samples on a device. `predict[stream]` indexes `[batch × slots]`, slots counted from the first that predicts; its
    rows are a prefix of `targets`'."""

    source: Source
    slots: Slots
    targets: Tensor
    predict: dict[str, Tensor]
    lengths: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; the copies are asynchronous from pinned memory."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        predict = {stream: move(slots) for stream, slots in self.predict.items()}
        return Batch(self.source.to(device), self.slots.to(device), move(self.targets), predict, move(self.lengths))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by torch's DataLoader."""
        source = Source(*(t.pin_memory() for t in (self.source.tokens, self.source.positions, self.source.samples)))
        slots = replace(self.slots, table=self.slots.table.pin_memory())
        predict = {stream: index.pin_memory() for stream, index in self.predict.items()}
        return Batch(source, slots, self.targets.pin_memory(), predict, self.lengths.pin_memory())


def collate(examples: Sequence[Example], pad_token_id: int, draws: int = 1) -> Batch:
    """Pad examples to a batch, one a row; where their slots stand is `arrange`'s. Two `draws`: see `drawn_twice`."""
    places = arrange(examples)
    table = np.empty((len(examples), places.width, len(PADDING)), dtype=np.int32)
    table[:] = PADDING
    table[..., TOKEN] = pad_token_id
    for row, (example, columns) in enumerate(zip(examples, places.columns, strict=True)):
        table[row, columns] = np.concatenate((example.content, example.query))

    first, width = places.first_predicting, places.width - places.first_predicting
    depth = np.concatenate([_depth(e) for e in examples])
    order = np.argsort(-depth, kind="stable")
    targets = np.concatenate([e.targets for e in examples])[order]
    predict = {}
    for stream in examples[0].predict:
        slots = np.full(len(order), -1, dtype=np.int64)
        offset = 0
        for row, (example, columns) in enumerate(zip(examples, places.columns, strict=True)):
            index = example.predict[stream]
            start = offset + (len(example.targets) - len(index) if stream == CORRECTED else 0)
            slots[start : start + len(index)] = row * width + columns[index] - first
            offset += len(example.targets)
        slots = slots[order]
        predict[stream] = torch.from_numpy(slots[slots >= 0])
    lengths = torch.tensor([e.length for e in examples])
    source = pad_sources([e.source for e in examples], pad_token_id)
    placed = Slots(torch.from_numpy(table), places.num_content, first, places.tiles)
    batch = Batch(source, placed, torch.from_numpy(targets.astype(np.int64)), predict, lengths)
    return drawn_twice(batch) if draws == 2 else batch


def drawn_twice(batch: Batch) -> Batch:
    """The batch with every row once more, which dropout will treat differently; `targets` and `lengths` stay.

    What the second rows predict are streams of their own, `second(stream)`.
    """
    source, slots = batch.source, batch.slots
    rows, width = slots.table.shape[:2]
    shift = rows * (width - slots.first_predicting)
    again = {second(stream): index + shift for stream, index in batch.predict.items()}
    twice = Source(*(torch.cat((t, t)) for t in (source.tokens, source.positions, source.samples)))
    table = torch.cat((slots.table, slots.table))
    return replace(batch, source=twice, slots=replace(slots, table=table), predict={**batch.predict, **again})


def second(stream: str) -> str:
    """The name of a stream in the second draw."""
    return f"{stream}2"


def _depth(example: Example) -> IntArray:
    """Number of streams that predict each target; less than none for those of the stream `CORRECTED`."""
    rows = np.arange(len(example.targets))
    first = [rows < len(index) for stream, index in example.predict.items() if stream != CORRECTED]
    last = len(rows) - len(example.predict.get(CORRECTED, ()))
    return np.sum(first, axis=0) - (rows >= last)
