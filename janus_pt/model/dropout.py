"""Dropout as a pure function of (run, step, micro-batch, layer): nothing to save, the same on every layout."""

from __future__ import annotations

import numpy as np
import torch

Seed = tuple[int, ...]
"""Numbers that together name a forward pass: the run's seed, the step, the micro-batch within the step."""


def seed_layer(seed: Seed, layer: int) -> None:
    """Start torch's generators anew for one layer of the forward pass `seed`; waits for no device."""
    state = np.random.SeedSequence([*seed, layer]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
