"""Problems of how long a run is, how its learning rate goes, and when it ends or validates."""

from __future__ import annotations

from collections.abc import Iterator

from janus_pt.config.content import Sections
from janus_pt.config.messages import Problem
from janus_pt.config.run_schema import CheckpointConfig, RunConfig


def run_problems(sections: Sections) -> Iterator[Problem]:
    """Problems of the run's length, schedule, validation and checkpoints together."""
    run, schedule, data = sections.run, sections.schedule, sections.data
    if schedule and run and schedule.warmup_steps > run.max_steps:
        reason = (
            f"{schedule.warmup_steps} warm-up steps do not fit in run.max_steps, which is "
            f"{run.max_steps}: lower one or raise the other"
        )
        yield ("schedule", "warmup_steps"), reason
    if schedule and sections.optimizer and schedule.final_lr > sections.optimizer.lr:
        reason = f"must be at most optimizer.lr ({sections.optimizer.lr:g}): the rate only falls"
        yield ("schedule", "final_lr"), reason
    if data and run and run.eval_every and not data.valid:
        reason = "needs a validation corpus: set data.valid, or eval_every to 0"
        yield ("run", "eval_every"), reason
    if run and run.patience and sections.checkpoint:
        yield from _patience_problems(run, sections.checkpoint)


def _patience_problems(run: RunConfig, checkpoint: CheckpointConfig) -> Iterator[Problem]:
    """Where `run.patience` is set, the best validation's checkpoint must be there to be exported."""
    if not run.eval_every:
        yield ("run", "patience"), "counts validations: set run.eval_every, or patience to 0"
    elif run.eval_every % checkpoint.every:
        reason = (
            f"must be a multiple of checkpoint.every ({checkpoint.every}) where run.patience is set, "
            f"so that what is best is saved, but is {run.eval_every}"
        )
        yield ("run", "eval_every"), reason
    if not checkpoint.keep_best:
        reason = "must be at least 1 where run.patience is set: what is best is exported"
        yield ("checkpoint", "keep_best"), reason
