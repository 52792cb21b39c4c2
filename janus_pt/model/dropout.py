"""Dropout as a pure function of (run, step, micro-batch, layer): nothing to save, the same on every layout."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Seed = tuple[int, ...]
"""Numbers that together name a forward pass: the run's seed, the step, the micro-batch within the step."""
LEVELS = 1 << 16
"""On a CPU probabilities are multiples of 1 / LEVELS: four elements share one 64-bit random number."""
ELEMENTS_PER_NUMBER = 4


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


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zero elements with `probability` and scale the others to the same mean."""
    if probability == 0:
        return x
    if x.device.type == "cpu":
        return x * keep_mask(x, probability)
    return F.dropout(x, probability)


def add_dropped(residual: Tensor, x: Tensor, probability: float) -> Tensor:
    """`residual` plus `x` after dropout."""
    if probability > 0 and x.device.type == "cpu":
        # One pass over memory instead of two.
        return torch.addcmul(residual, x, keep_mask(x, probability))
    return residual + dropout(x, probability)


def keep_mask(like: Tensor, probability: float) -> Tensor:
    """Zeros with `probability`, else the scale, on a CPU; a fifth of the time that torch's `bernoulli_` takes."""
    # Never all levels: the scale would be infinite.
    dropped_levels = min(round(probability * LEVELS), LEVELS - 1)
    size = like.numel()
    count = (size + ELEMENTS_PER_NUMBER - 1) // ELEMENTS_PER_NUMBER
    # From the lowest 64-bit integer on, with no upper end: all bits are random.
    numbers = torch.empty(count, dtype=torch.int64).random_(-(2**63), None)
    levels = numbers.view(torch.int16)[:size].view(like.shape)
    # Signed 16-bit numbers begin at -LEVELS / 2.
    keep = levels >= dropped_levels - LEVELS // 2
    scale = LEVELS / (LEVELS - dropped_levels)
    return keep.to(like.dtype).mul_(scale)
