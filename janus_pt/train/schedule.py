"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from janus_pt.config.schema import OptimizerConfig, ScheduleConfig


def learning_rate(
    step: int, optimizer: OptimizerConfig, schedule: ScheduleConfig, max_steps: int
) -> float:
    """Learning rate of `step`, counted from 1 to `max_steps`.

    Warm-up is linear from 0: step `s` of `w` has `lr * s / w`. After it `inverse_sqrt` is `lr * sqrt(w / s)` with
    `w` at least 1 (Vaswani et al. 2017); `polynomial` and `cosine` go from `lr` at step `w` to `final_lr` at
    `max_steps` and stay there.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return optimizer.lr * step / warmup
    if schedule.kind == "inverse_sqrt":
        return optimizer.lr * math.sqrt(max(warmup, 1) / max(step, 1))
    left = max(0.0, 1.0 - (step - warmup) / max(max_steps - warmup, 1))
    share = (
        left**schedule.power
        if schedule.kind == "polynomial"
        else 0.5 * (1.0 - math.cos(math.pi * left))
    )
    return schedule.final_lr + (optimizer.lr - schedule.final_lr) * share
