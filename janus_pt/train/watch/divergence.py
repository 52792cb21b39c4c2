"""Numbers that go wrong: steps without a finite gradient are left out on all ranks, spikes of the loss are told.

DeepSpeed compares the norm of the whole gradient, which a NaN or an infinity in any rank's loss or gradient makes
infinite or NaN everywhere, before it updates anything; so all ranks leave out the same step. The samples of a step
follow from the state of the loader before it, which is what a dump holds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.utils import is_invalid_grad_norm

from janus_pt.data.loader import TrainLoader
from janus_pt.parallel.engine import Engine
from janus_pt.utils.errors import warn
from janus_pt.utils.files import write_atomically

EXIT_DIVERGED = 14
DUMPS = "dumps"
SHOWN = 8
"""Samples that a message names; the dump has all."""
SPIKE_WINDOW, SPIKE_DEVIATIONS = 50, 8.0
"""A loss that is so many standard deviations above the mean of the last losses told is a spike."""


class DivergenceMonitor:
    """Watches the gradient of each step, and the losses that are told."""

    def __init__(self, run_folder: Path, loader: TrainLoader[Any, Any], most_in_a_row: int) -> None:
        self.left_out = 0
        self.in_a_row = 0
        self._folder = run_folder / DUMPS
        self._loader = loader
        self._most = most_in_a_row
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def step_done(self, step: int, engine: Engine, before: dict[str, Any]) -> bool:
        """Note whether a step was left out; whether the run is to stop because too many were.

        Args:
            before: state of the loader before the step.
        """
        if not was_skipped(engine):
            self.in_a_row = 0
            return False
        self.left_out += 1
        self.in_a_row += 1
        self._dump(
            step,
            before,
            f"loss or gradient is not finite; left out on all ranks, {self.left_out} so far",
        )
        return self.in_a_row >= self._most

    def loss_told(self, step: int, loss: float, before: dict[str, Any]) -> None:
        """Compare a loss with those before it."""
        if not math.isfinite(loss):
            return
        if len(self._losses) == SPIKE_WINDOW:
            mean, deviation = statistics.fmean(self._losses), statistics.stdev(self._losses)
            if loss > mean + SPIKE_DEVIATIONS * deviation:
                self._dump(
                    step,
                    before,
                    f"the loss is {loss:.4g}, the mean of the last {SPIKE_WINDOW} is {mean:.4g}",
                )
        self._losses.append(loss)

    def _dump(self, step: int, before: dict[str, Any], why: str) -> None:
        """On the first rank: tell of a step, and write what replays it."""
        if dist.get_rank() != 0:
            return
        samples = self._loader.samples_of_step(before)
        shown = ", ".join(samples[:SHOWN]) + (", …" if len(samples) > SHOWN else "")
        path = self._folder / f"step_{step}.json"
        content = {"step": step, "why": why, "loader": before, "samples": samples}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content, indent=1))
        except OSError as error:
            warn(f"{path}: cannot be written: {error}")
        warn(f"step {step}: {why}; samples {shown}; --replay {path} does the step again")


def was_skipped(engine: Engine) -> bool:
    """Whether the engine's last update was left out; the same on all ranks. Waits for nothing: the norm is known."""
    left_out = getattr(engine.optimizer, "overflow", None)
    if left_out is None:  # ZeRO-0 in float32, where `note_gradient_norm` has looked at the norm
        return bool(is_invalid_grad_norm(engine.get_global_grad_norm()))
    return bool(left_out)
