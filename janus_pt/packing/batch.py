"""Examples, and batches of them: packed slots and the places that predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_pt.packing.buffer import as_buffer, pack_tensors, unpack_tensors
from janus_pt.packing.padded import IntArray
from janus_pt.packing.row_layout import pack_row
from janus_pt.packing.slots import (
    PADDING,
    SEGMENT,
    SlotArray,
    Slots,
    Source,
    pack_slots,
    pack_sources,
)

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
    """Samples on a device. `predict[stream]` indexes the slots, counted from the first that predicts; its rows are a
    prefix of `targets`'. Between processes and devices it moves as one block of memory."""

    source: Source
    slots: Slots
    targets: Tensor
    predict: dict[str, Tensor]
    lengths: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; the copy is asynchronous from pinned memory."""
        return (
            self
            if self.targets.device == device
            else self._moved(lambda block: block.to(device, non_blocking=True))
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by torch's DataLoader."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        block, layout = as_buffer(self)
        moved: Batch = unpack_tensors(move(block), layout)
        return moved

    def __reduce__(self) -> tuple[Any, ...]:
        return _unfold, as_buffer(
            (self.source, self.slots, self.targets, self.predict, self.lengths)
        )


def _unfold(block: Tensor, layout: Any) -> Batch:
    return Batch(*unpack_tensors(block, layout))


def collate(examples: Sequence[Example], draws: int = 1) -> Batch:
    """Pack examples into a batch of one row; where their slots stand is `pack_row`'s.

    With two `draws` every sample is in it twice, and dropout will treat the two differently; `targets` and `lengths`
    stay. What the second ones predict are streams of their own, `second_draw(stream)`.
    """
    drawn = [*examples] * draws
    places = pack_row(drawn)
    table = np.tile(PADDING, (places.width, 1))
    for sample, (example, own) in enumerate(zip(drawn, places.columns, strict=True)):
        table[own] = np.concatenate((example.content, example.query))
        table[own, SEGMENT] += 2 * sample
    order = np.argsort(-np.concatenate([_depth(e) for e in examples]), kind="stable")
    targets = np.concatenate([e.targets for e in examples])[order]
    predict = {}
    for draw in range(draws):
        columns = places.columns[draw * len(examples) : (draw + 1) * len(examples)]
        for stream in examples[0].predict:
            slots = _predicting(examples, columns, stream)[order] - places.first_predicting
            predict[second_draw(stream) if draw else stream] = torch.from_numpy(slots[slots >= 0])
    lengths = torch.tensor([e.length for e in examples])
    packed = pack_slots(table, places.num_content, places.first_predicting)
    source = pack_sources([e.source for e in drawn])
    batch: Batch = pack_tensors(
        Batch(source, packed, torch.from_numpy(targets.astype(np.int64)), predict, lengths)
    )
    return batch


def second_draw(stream: str) -> str:
    """The name of a stream in the second draw."""
    return f"{stream}2"


def _predicting(examples: Sequence[Example], columns: Sequence[IntArray], stream: str) -> IntArray:
    """The place that predicts each target in the stream, -1 where none does."""
    parts = []
    for example, places in zip(examples, columns, strict=True):
        index = example.predict[stream]
        part = np.full(len(example.targets), -1, dtype=np.int64)
        start = len(part) - len(index) if stream == CORRECTED else 0
        part[start : start + len(index)] = places[index]
        parts.append(part)
    return np.concatenate(parts)


def _depth(example: Example) -> IntArray:
    """Number of streams that predict each target; less than none for those of the stream `CORRECTED`."""
    rows = np.arange(len(example.targets))
    first = [rows < len(index) for stream, index in example.predict.items() if stream != CORRECTED]
    last = len(rows) - len(example.predict.get(CORRECTED, ()))
    return np.sum(first, axis=0) - (rows >= last)
