"""Examples, and batches of them: packed slots and the places that predict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_pt.packing.alignment import Alignment, align
from janus_pt.packing.buffer import as_buffer, pack_tensors, unpack_tensors
from janus_pt.packing.example import Example, IntArray
from janus_pt.packing.padded import round_to_row_step
from janus_pt.packing.row_layout import pack_row
from janus_pt.packing.slots import (
    PADDING,
    SEGMENT,
    Slots,
    Source,
    pack_slots,
    pack_sources,
)


@dataclass(frozen=True)
class Batch:
    """Samples on a device; between processes and devices they move as one block of memory.

    targets: the predicted tokens `[rows]` of all samples.
    predict: for each stream its predicting slots, counted from the first slot that predicts; they
        predict a prefix of `targets`, or a suffix for the objective's `suffix_streams`.
    lengths: target tokens of each sample, with bos and eos.
    alignment: of the stream that is aligned with its tokens, if the objective has one.
    """

    source: Source
    slots: Slots
    targets: Tensor
    predict: dict[str, Tensor]
    lengths: Tensor
    alignment: Alignment | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; the copy is asynchronous from pinned memory."""
        if self.targets.device == device:
            return self
        return self._moved(lambda block: block.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by torch's DataLoader."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        block, layout = as_buffer(self)
        moved: Batch = unpack_tensors(move(block), layout)
        return moved

    def __reduce__(self) -> tuple[Any, ...]:
        # The fields and not the batch itself, which would be pickled by this very method again.
        fields = (
            self.source,
            self.slots,
            self.targets,
            self.predict,
            self.lengths,
            self.alignment,
        )
        return _unpack_batch, as_buffer(fields)


def _unpack_batch(block: Tensor, layout: Any) -> Batch:
    return Batch(*unpack_tensors(block, layout))


def collate(
    examples: Sequence[Example],
    draws: int = 1,
    suffix_streams: Collection[str] = (),
    aligned_stream: str | None = None,
    round_length: Callable[[int], int] = round_to_row_step,
) -> Batch:
    """Pack examples into a batch of one row; `pack_row` decides where their slots stand.

    `round_length` pads the lengths of the sources and of each section of the slots.

    With two `draws` every sample is in the row twice, and dropout will treat the two differently;
    `targets` and `lengths` stay. What the second ones predict are streams of their own,
    `second_draw(stream)`.

    Raises:
        ValueError: the streams' rows cannot be prefixes (or suffixes) of one list of all targets.
    """
    drawn = [*examples] * draws
    layout = pack_row(drawn, round_length)
    table = np.tile(PADDING, (layout.width, 1))
    for sample, (example, positions) in enumerate(zip(drawn, layout.positions, strict=True)):
        table[positions] = np.concatenate((example.content, example.query))
        # Segments are counted through the row: two a sample.
        table[positions, SEGMENT] += 2 * sample
    targets = np.concatenate([example.targets for example in examples])
    by_row = [stream for stream in examples[0].predict if stream != aligned_stream]
    order = _target_order(examples, by_row, suffix_streams)
    predict = {}
    for draw in range(draws):
        first = draw * len(examples)
        positions_of_draw = layout.positions[first : first + len(examples)]
        for stream in by_row:
            is_suffix = stream in suffix_streams
            slots = _predicting_slots(examples, positions_of_draw, stream, is_suffix)[order]
            rows = _present_rows(slots, stream, is_suffix) - layout.first_predicting
            predict[second_draw(stream) if draw else stream] = torch.from_numpy(rows)
    alignment = None
    if aligned_stream is not None:
        alignment, slots = _aligned(examples, layout.positions, aligned_stream)
        predict[aligned_stream] = torch.from_numpy(slots - layout.first_predicting)
    batch = Batch(
        source=pack_sources([example.source for example in drawn], round_length),
        slots=pack_slots(table, layout.num_content, layout.first_predicting),
        targets=torch.from_numpy(targets[order].astype(np.int64)),
        predict=predict,
        lengths=torch.tensor([example.length for example in examples]),
        alignment=alignment,
    )
    # One block of memory: one copy to the device, one thing to hand to another process.
    packed: Batch = pack_tensors(batch)
    return packed


def second_draw(stream: str) -> str:
    """The name of a stream in the second draw."""
    return f"{stream}2"


def _aligned(
    examples: Sequence[Example], positions: Sequence[IntArray], stream: str
) -> tuple[Alignment, IntArray]:
    """The alignment of a stream, and its slots in the row, sample by sample."""
    slots = [
        own_positions[example.predict[stream]]
        for example, own_positions in zip(examples, positions, strict=True)
    ]
    classes = []
    for example in examples:
        assert example.classes is not None, f"stream {stream!r} is aligned, but has no classes"
        classes.append(example.classes)
    return align([len(own) for own in slots], classes), np.concatenate(slots)


def _target_order(
    examples: Sequence[Example], streams: Collection[str], suffix_streams: Collection[str]
) -> IntArray:
    """The order of all examples' targets in which each of `streams` predicts a prefix or a suffix
    of them.

    Targets of the most prefixes come first, targets of the most suffixes last; the sort is stable.
    """
    rank = []
    for example in examples:
        row = np.arange(len(example.targets))
        depth = np.zeros(len(row), dtype=np.int64)
        for stream in streams:
            slots = example.predict[stream]
            if stream in suffix_streams:
                depth -= row >= len(row) - len(slots)
            else:
                depth += row < len(slots)
        rank.append(-depth)
    return np.argsort(np.concatenate(rank), kind="stable")


def _predicting_slots(
    examples: Sequence[Example], positions: Sequence[IntArray], stream: str, is_suffix: bool
) -> IntArray:
    """The slot of the row that predicts each target in the stream, -1 where none does; `[targets]`."""
    parts = []
    for example, own_positions in zip(examples, positions, strict=True):
        slots = own_positions[example.predict[stream]]
        part = np.full(len(example.targets), -1, dtype=np.int64)
        start = len(part) - len(slots) if is_suffix else 0
        part[start : start + len(slots)] = slots
        parts.append(part)
    return np.concatenate(parts)


def _present_rows(slots: IntArray, stream: str, is_suffix: bool) -> IntArray:
    """The slots that are not -1, which must stand together at the stream's end of the targets."""
    count = int(np.count_nonzero(slots >= 0))
    rows = slots[len(slots) - count :] if is_suffix else slots[:count]
    # A gap would pair each following slot with a wrong target, silently.
    if count and rows.min() < 0:
        raise ValueError(
            f"the predictions of stream {stream!r} are not a {'suffix' if is_suffix else 'prefix'} of the batch's "
            "targets: in every example the streams must rank in the same order by the number of their predictions"
        )
    return rows
