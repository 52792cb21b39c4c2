"""The places of a packed row, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from janus_pt.packing.example import IntArray

ROW_STEP, PADDED_STEP = 32, 8
"""Lengths of the parts of a row, and widths of grids, are multiples of these."""


@dataclass(frozen=True)
class PaddedLayout:
    """How attention is computed where there are no block masks: every sample beside the others.

    Each of `indices` is `[samples, longest]` and holds the row indices of each sample's slots, then
    -1. Every slot of the row that is not `padding` is in one of them; `inverse_indices [row]` says
    where, counted through all of them one after another."""

    indices: tuple[Tensor, ...]
    inverse_indices: Tensor
    padding: Tensor


def make_padded_layout(
    samples: IntArray, groups: IntArray, num_samples: int, num_groups: int
) -> PaddedLayout:
    """A grid for each group; `samples` and `groups` `[row]` say what each place belongs to, sample
    -1 is padding.

    A sample's places keep their order.
    """
    grids, inverse, offset = [], np.zeros(len(samples), dtype=np.int64), 0
    for group in range(num_groups):
        here = np.flatnonzero((groups == group) & (samples >= 0))
        here = here[stable_argsort(samples[here], num_samples)]
        row = samples[here]
        sizes = np.bincount(row, minlength=num_samples)
        column = np.arange(len(here)) - (np.cumsum(sizes) - sizes)[row]
        grid = np.full((num_samples, round_up(sizes.max(), PADDED_STEP)), -1, dtype=np.int64)
        place = row * grid.shape[1] + column
        grid.reshape(-1)[place] = here
        inverse[here] = offset + place
        offset += grid.size
        grids.append(torch.from_numpy(grid))
    return PaddedLayout(
        tuple(grids), torch.from_numpy(inverse), torch.from_numpy(np.flatnonzero(samples < 0))
    )


def stable_argsort(keys: IntArray, count: int) -> IntArray:
    """What sorts keys below `count` and keeps the order of equal ones; a radix sort as long as they
    fit 16 bits."""
    return np.argsort(keys.astype(np.min_scalar_type(count)), kind="stable")


def round_up(size: int, step: int) -> int:
    """The next multiple of `step`: sizes that come again let kernels be used again, and some are
    made anew for each."""
    return -(-size // step) * step
