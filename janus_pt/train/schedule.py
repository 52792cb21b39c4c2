"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from janus_pt.config.schema import OptimizerConfig, ScheduleConfig


def learning_rate(
    step: int, optimizer: OptimizerConfig, schedule: ScheduleConfig, max_steps: int
) -> float:
    """Learning rate of `step`, counted from 1 to `max_steps`.

    Warm-up is linear from 0: step s of w has `lr * s / w`. After it, `inverse_sqrt` is
    `lr * sqrt(w / s)` with w at least 1 (Vaswani et al. 2017). `polynomial` and `cosine` go from `lr`
    at step w to `final_lr` at `max_steps` and stay there.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return optimizer.lr * step / warmup
    if schedule.kind == "inverse_sqrt":
        # At least 1, so that the rate is defined without a warm-up, and before the first step.
        return optimizer.lr * math.sqrt(max(warmup, 1) / max(step, 1))
    # Warm-up may take all steps; then there is no decay to divide.
    decay_steps = max(max_steps - warmup, 1)
    remaining = max(0.0, 1.0 - (step - warmup) / decay_steps)
    if schedule.kind == "polynomial":
        share = remaining**schedule.power
    else:
        # Half a cosine, from 0 at the end to 1 at its beginning.
        share = 0.5 * (1.0 - math.cos(math.pi * remaining))
    return schedule.final_lr + (optimizer.lr - schedule.final_lr) * share
