"""Dropout as a pure function of (run, step, micro-batch, layer): nothing to save, the same on every layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Seed = tuple[int, ...]
"""Numbers that together name a forward pass: the run's seed, the step, the micro-batch within the step."""
LEVELS = 1 << 16
"""On a CPU probabilities are multiples of 1 / LEVELS: four elements share one 64-bit random number."""
ELEMENTS_PER_NUMBER = 4


@dataclass(frozen=True)
class RowShare:
    """Which rows of a packed row `[1, rows, ...]` a rank has: part `rank` of `ranks` of the same size."""

    rank: int = 0
    ranks: int = 1

    def own(self, x: Tensor) -> Tensor:
        """The rank's rows of `x`, a view."""
        size = x.shape[1] // self.ranks
        return x.narrow(1, self.rank * size, size)


ALL_ROWS = RowShare()


def seed_layer(seed: Seed, layer: int) -> None:
    """Start torch's generators anew for one layer of the forward pass `seed`; waits for no device."""
    # A hash of all numbers: neighbouring steps and layers get unrelated generators.
    state = np.random.SeedSequence([*seed, layer]).generate_state(1, np.uint64)
    seed_generators(int(state[0]))


def seed_generators(seed: int) -> None:
    """Give the CPU's generator, and this process's GPU's, the states that `torch.manual_seed` would.

    `torch.manual_seed` asks the other kinds of accelerators, too. In torch 2.13 each of these
    formats a stack trace, a third of a millisecond a call; a step has a call for each layer.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)


def dropout(x: Tensor, probability: float, share: RowShare = ALL_ROWS) -> Tensor:
    """Zero elements with `probability` and scale the others to the same mean.

    Args:
        share: the rows that `x` is of a row. All ranks together draw what one would for the whole row.
    """
    if probability == 0:
        return x
    if x.device.type == "cpu":
        return x * keep_mask(x, probability, share)
    return torch_dropout(x, probability, share)


def torch_dropout(x: Tensor, probability: float, share: RowShare = ALL_ROWS) -> Tensor:
    """`dropout` with the numbers that torch draws."""
    if share.ranks == 1:
        return F.dropout(x, probability)
    # A generator cannot begin in the middle of what it would draw for a whole row, and which element
    # gets which number depends on the size: so the whole row is drawn, densely.
    whole = x.new_ones((x.shape[0], x.shape[1] * share.ranks, *x.shape[2:]))
    is_kept = share.own(F.dropout(whole, probability)) != 0
    return torch.where(is_kept, x * (1 / (1 - probability)), x.new_zeros(()))


def add_dropped(
    residual: Tensor, x: Tensor, probability: float, share: RowShare = ALL_ROWS
) -> Tensor:
    """`residual` plus `x` after dropout."""
    if probability > 0 and x.device.type == "cpu":
        # One pass over memory instead of two.
        return torch.addcmul(residual, x, keep_mask(x, probability, share))
    return residual + dropout(x, probability, share)


def keep_mask(like: Tensor, probability: float, share: RowShare = ALL_ROWS) -> Tensor:
    """Zeros with `probability`, else the scale, on a CPU; a fifth of the time that torch's `bernoulli_` takes."""
    # Never all levels: the scale would be infinite.
    dropped_levels = min(round(probability * LEVELS), LEVELS - 1)
    size = like.numel()
    # Numbers are drawn for all rows, in their order.
    count = (size * share.ranks + ELEMENTS_PER_NUMBER - 1) // ELEMENTS_PER_NUMBER
    # From the lowest 64-bit integer on, with no upper end: all bits are random.
    numbers = torch.empty(count, dtype=torch.int64).random_(-(2**63), None)
    levels = numbers.view(torch.int16).narrow(0, share.rank * size, size).view(like.shape)
    # Signed 16-bit numbers begin at -LEVELS / 2.
    keep = levels >= dropped_levels - LEVELS // 2
    scale = LEVELS / (LEVELS - dropped_levels)
    return keep.to(like.dtype).mul_(scale)
