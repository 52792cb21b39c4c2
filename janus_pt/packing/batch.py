"""Examples, and batches of them: packed slots and the places that predict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from janus_pt.packing.alignment import Alignment, align
from janus_pt.packing.buffer import as_buffer, pack_tensors, unpack_tensors
from janus_pt.packing.example import Example, IntArray, SlotArray
from janus_pt.packing.padded import (
    round_to_blocks,
    round_to_graph_step,
    round_to_row_step,
    round_up,
)
from janus_pt.packing.row_layout import RowLayout, pack_row
from janus_pt.packing.slots import (
    PADDING,
    SEGMENT,
    Slots,
    Source,
    pack_slots,
    pack_sources,
)

PADDING_NUMBER = -1
"""Of targets and lengths where padding stands in for one."""
SAMPLES_STEP = 64
"""For CUDA graphs the number of samples is a multiple of this: one more costs next to nothing."""


@dataclass(frozen=True)
class BatchCounts:
    """How much of a batch is real; numbers of the host.

    predicted: rows of each stream.
    samples: a second draw not counted.
    """

    predicted: dict[str, int]
    targets: int
    samples: int


@dataclass(frozen=True)
class Batch:
    """Samples on a device; between processes and devices they move as one block of memory.

    targets: the predicted tokens `[rows]` of all samples; -1 is padding, whose slots are any.
    predict: for each stream its predicting slots, counted from the first slot that predicts; they
        predict a prefix of `targets`, or a suffix for the objective's `suffix_streams`.
    lengths: target tokens of each sample of the row, with bos and eos; -1 is padding.
    alignment: of the stream that is aligned with its tokens, if the objective has one.
    """

    source: Source
    slots: Slots
    targets: Tensor
    predict: dict[str, Tensor]
    lengths: Tensor
    counts: BatchCounts
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
            self.counts,
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
    for_graphs: bool = False,
    for_blocks: bool = False,
) -> Batch:
    """Pack examples into a batch of one row; `pack_row` decides where their slots stand.

    Args:
        draws: with two every sample is in the row twice, and dropout will treat the two differently;
            `targets` stay. What the second ones predict are streams of their own,
            `second_draw(stream)`.
        for_graphs: all sizes are among few, by padding: each combination of them has its own CUDA
            graphs. Not for an `aligned_stream`.
        for_blocks: no section of the row is so short that FlexAttention is compiled for it.

    Raises:
        ValueError: the streams' rows cannot be prefixes (or suffixes) of one list of all targets.
    """
    round_length = _rounding(for_graphs, for_blocks)
    drawn = [*examples] * draws
    num_samples = round_up(len(drawn), SAMPLES_STEP if for_graphs else 1)
    layout = pack_row(drawn, round_length)
    table = _slot_table(drawn, layout)
    targets = np.concatenate([example.targets for example in examples])
    by_row = [stream for stream in examples[0].predict if stream != aligned_stream]
    order = _target_order(examples, by_row, suffix_streams)
    by_stream = _slots_of_targets(examples, layout, draws, by_row, suffix_streams)
    slots_of_targets = {name: slots[order] for name, slots in by_stream.items()}
    targets = targets[order].astype(np.int64)
    num_targets = len(targets)
    predicted = {name: int((slots >= 0).sum()) for name, slots in slots_of_targets.items()}
    if for_graphs:
        targets, slots_of_targets = _pad_runs(targets, slots_of_targets, round_length)
    predict = {}
    suffixes = {*suffix_streams, *map(second_draw, suffix_streams)}
    for name, slots in slots_of_targets.items():
        rows = _present_rows(slots, name, name in suffixes) - layout.first_predicting
        predict[name] = torch.from_numpy(rows)
    alignment = None
    if aligned_stream is not None:
        alignment, slots = _aligned(examples, layout.positions, aligned_stream)
        predict[aligned_stream] = torch.from_numpy(slots - layout.first_predicting)
        predicted[aligned_stream] = len(slots)
    lengths = [example.length for example in drawn]
    lengths += [PADDING_NUMBER] * (num_samples - len(drawn))
    batch = Batch(
        source=pack_sources([example.source for example in drawn], round_length, num_samples),
        slots=pack_slots(table, layout.num_content, layout.first_predicting, num_samples),
        targets=torch.from_numpy(targets),
        predict=predict,
        lengths=torch.tensor(lengths),
        counts=BatchCounts(predicted, num_targets, len(examples)),
        alignment=alignment,
    )
    # One block of memory: one copy to the device, one thing to hand to another process.
    packed: Batch = pack_tensors(batch)
    return packed


def _rounding(for_graphs: bool, for_blocks: bool) -> Callable[[int], int]:
    if for_graphs:
        return round_to_graph_step
    return round_to_blocks if for_blocks else round_to_row_step


def _slot_table(examples: Sequence[Example], layout: RowLayout) -> SlotArray:
    """The row's slots `[width, 7]`, padding where no example has one."""
    table = np.tile(PADDING, (layout.width, 1))
    for sample, (example, positions) in enumerate(zip(examples, layout.positions, strict=True)):
        table[positions] = np.concatenate((example.content, example.query))
        # Segments are counted through the row: two a sample.
        table[positions, SEGMENT] += 2 * sample
    return table


def _slots_of_targets(
    examples: Sequence[Example],
    layout: RowLayout,
    draws: int,
    streams: Sequence[str],
    suffix_streams: Collection[str],
) -> dict[str, IntArray]:
    """For each stream of each draw the slots that predict the targets, -1 where it has none."""
    found = {}
    for draw in range(draws):
        first = draw * len(examples)
        positions = layout.positions[first : first + len(examples)]
        for stream in streams:
            name = second_draw(stream) if draw else stream
            is_suffix = stream in suffix_streams
            found[name] = _predicting_slots(examples, positions, stream, is_suffix)
    return found


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


def _pad_runs(
    targets: IntArray, slots: Mapping[str, IntArray], round_length: Callable[[int], int]
) -> tuple[IntArray, dict[str, IntArray]]:
    """Targets and their slots, -1 where a stream has none, with padding behind each run of targets
    that the same streams predict."""
    present = np.stack([of_stream >= 0 for of_stream in slots.values()])
    changes = np.flatnonzero((present[:, 1:] != present[:, :-1]).any(0)) + 1
    parts, is_padding = [], []
    for run in np.split(np.arange(len(targets)), changes):
        missing = round_length(len(run)) - len(run)
        # Padding has the slots of the run's last target: of the same streams, and finite.
        parts += [run, np.repeat(run[-1:], missing)]
        is_padding += [np.zeros(len(run), dtype=bool), np.ones(missing, dtype=bool)]
    rows = np.concatenate(parts)
    padded = np.where(np.concatenate(is_padding), PADDING_NUMBER, targets[rows])
    return padded, {name: of_stream[rows] for name, of_stream in slots.items()}


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
