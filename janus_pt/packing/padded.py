"""From a packed row to samples side by side, as attention reads them without block masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from janus_pt.packing.example import IntArray

ROW_STEP, PADDED_STEP = 32, 8
"""Lengths of a row's sections, and widths of padded layouts, are multiples of these."""


@dataclass(frozen=True)
class PaddedLayout:
    """Where each element of a packed row stands when the samples stand side by side.

    indices: for each part of the row (one, or one for each side of the samples) the row indices
        `[samples, longest]` of its elements, sample by sample, then -1.
    inverse_indices: `[row]`, the place of each element in all parts, counted through one after
        another.
    padding: the row indices that belong to no sample.
    """

    indices: tuple[Tensor, ...]
    inverse_indices: Tensor
    padding: Tensor


def make_padded_layout(
    samples: IntArray, groups: IntArray, num_samples: int, num_groups: int
) -> PaddedLayout:
    """One part for each group; `samples` and `groups` `[row]` tell of each element which are its
    own.

    Sample -1 is padding. The elements of a sample keep their order.
    """
    parts = []
    inverse = np.zeros(len(samples), dtype=np.int64)
    # Elements of the parts before this one.
    offset = 0
    for group in range(num_groups):
        members = np.flatnonzero((groups == group) & (samples >= 0))
        # A sample's elements may be spread over the row; the sort is stable and keeps their order.
        members = members[stable_argsort(samples[members], num_samples)]
        sample = samples[members]
        sizes = np.bincount(sample, minlength=num_samples)
        width = round_up(sizes.max(), PADDED_STEP)
        first_of_sample = np.cumsum(sizes) - sizes
        column = np.arange(len(members)) - first_of_sample[sample]
        position = sample * width + column
        part = np.full(num_samples * width, -1, dtype=np.int64)
        part[position] = members
        inverse[members] = offset + position
        offset += part.size
        parts.append(torch.from_numpy(part.reshape(num_samples, width)))
    padding = np.flatnonzero(samples < 0)
    return PaddedLayout(tuple(parts), torch.from_numpy(inverse), torch.from_numpy(padding))


def stable_argsort(keys: IntArray, count: int) -> IntArray:
    """The indices that sort keys below `count`; equal keys keep their order."""
    # numpy sorts integers of up to 16 bits by radix, several times faster than longer ones.
    narrow = keys.astype(np.min_scalar_type(count))
    return np.argsort(narrow, kind="stable")


GRAPH_STEPS = 8
"""Lengths for CUDA graphs between a power of two and the next: rows get longer by a sixteenth on average."""
MIN_GRAPH_STEP = 128
"""Slots of a block of FlexAttention's masks."""
SHORTEST_SECTION = 2 * MIN_GRAPH_STEP
"""So that every mask has several blocks."""


def round_to_row_step(size: int) -> int:
    """The length of a row's section."""
    return round_up(size, ROW_STEP)


def round_to_blocks(size: int) -> int:
    """The length of a row's section that FlexAttention reads, which gets no other kernels for short ones.

    torch compiles anew for masks of one block of keys, and for rows of fewer queries than a block has.
    """
    return max(SHORTEST_SECTION, round_to_row_step(size)) if size else 0


def round_to_graph_step(size: int) -> int:
    """The length of a row's section where each combination of lengths has its own CUDA graphs."""
    power_of_two = 1 << max(0, int(size).bit_length() - 1)
    return round_up(round_to_blocks(size), max(MIN_GRAPH_STEP, power_of_two // GRAPH_STEPS))


def round_up(size: int, step: int) -> int:
    """The next multiple of `step`. The fewer sizes there are, the fewer kernels are compiled for
    them."""
    return -(-size // step) * step
