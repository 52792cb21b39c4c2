"""Divergence: steps without a finite gradient are skipped on all ranks, spikes are reported.

Before it updates anything, DeepSpeed looks at the norm of the whole gradient, which a NaN or an
infinity in any rank's loss or gradient makes infinite or NaN everywhere; so all ranks skip the same
step. The samples of a step follow from the state of the loader before it, which is what a dump
holds.
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
MAX_SHOWN_SAMPLES = 8
"""Samples that a message names; the dump has all."""
SPIKE_WINDOW, SPIKE_DEVIATIONS = 50, 8.0
"""A loss that many standard deviations above the mean of the last losses seen is a spike."""


class DivergenceMonitor:
    """Watches the gradient of each step, and the losses that are reported.

    `skipped` counts the skipped steps of the run, `skipped_in_a_row` the latest ones.
    """

    def __init__(self, run_folder: Path, loader: TrainLoader[Any, Any], max_in_a_row: int) -> None:
        self.skipped = 0
        self.skipped_in_a_row = 0
        self._folder = run_folder / DUMPS
        self._loader = loader
        self._max_in_a_row = max_in_a_row
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def check_step(self, step: int, engine: Engine, before: dict[str, Any]) -> bool:
        """Note whether a step was skipped; whether the run must stop because too many were.

        Args:
            before: state of the loader before the step.
        """
        if not was_skipped(engine):
            self.skipped_in_a_row = 0
            return False
        self.skipped += 1
        self.skipped_in_a_row += 1
        self._dump(
            step,
            before,
            "loss or gradient is not finite; the step is skipped on all ranks, "
            f"{self.skipped} so far",
        )
        return self.skipped_in_a_row >= self._max_in_a_row

    def check_loss(self, step: int, loss: float, before: dict[str, Any]) -> None:
        """Compare a loss with the last ones, and report a spike."""
        # Not finite: the step was skipped, and `check_step` has reported it.
        if not math.isfinite(loss):
            return
        # Not before the window is full: the first losses of a run fall steeply.
        if len(self._losses) == SPIKE_WINDOW:
            mean = statistics.fmean(self._losses)
            limit = mean + SPIKE_DEVIATIONS * statistics.stdev(self._losses)
            if loss > limit:
                self._dump(
                    step,
                    before,
                    f"the loss is {loss:.4g}, the mean of the last {SPIKE_WINDOW} is {mean:.4g}",
                )
        self._losses.append(loss)

    def _dump(self, step: int, before: dict[str, Any], why: str) -> None:
        """On the first rank: report a step, and write the file that replays it."""
        if dist.get_rank() != 0:
            return
        samples = self._loader.samples_of_step(before)
        shown = ", ".join(samples[:MAX_SHOWN_SAMPLES])
        if len(samples) > MAX_SHOWN_SAMPLES:
            shown += ", …"
        path = self._folder / f"step_{step}.json"
        content = {"step": step, "why": why, "loader": before, "samples": samples}
        # A disk that is full is no reason to end a training that goes on.
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content, indent=1))
        except OSError as error:
            warn(f"{path}: cannot be written: {error}")
        warn(f"step {step}: {why}; samples {shown}; --replay {path} does the step again")


def was_skipped(engine: Engine) -> bool:
    """Whether the engine skipped its last update, the same on all ranks. Waits for nothing."""
    overflow = getattr(engine.optimizer, "overflow", None)
    if overflow is not None:
        return bool(overflow)
    # ZeRO-0 in float32, a plain optimizer: `note_gradient_norm` has looked at the norm.
    return bool(is_invalid_grad_norm(engine.get_global_grad_norm()))
