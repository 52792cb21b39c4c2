"""The best validations of a run: which they are, when to stop waiting for a better one, and the way
back to the best one's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.distributed as dist

from janus_pt.checkpoint import store as checkpoint
from janus_pt.checkpoint.layout import job_layout
from janus_pt.checkpoint.restore import load
from janus_pt.train.state import Run
from janus_pt.utils.errors import UserError


def score(validated: Mapping[str, float], metric: str | None) -> float:
    """How good a validation is, higher being better: its `metric`, or its negative loss.

    Args:
        metric: `validation.metric`; None where validation does not decode.
    """
    value = -validated["loss"] if metric is None else validated.get(metric, math.nan)
    # A validation without a usable number is worse than all others.
    return value if math.isfinite(value) else -math.inf


def record_validation(run: Run) -> list[int]:
    """Rank the validation of the current step, if there was one, among the best.

    Returns the steps of the best validations, whose checkpoints must be kept. Of equally good ones
    the earliest is the best.
    """
    keep, validation = run.config.checkpoint.keep_best, run.config.validation
    metric = validation.metric if validation else None
    is_new = run.validated.get("step") == run.step
    if is_new and score(run.validated, metric) > -math.inf:
        # After a resume the list may have later steps, which are done again.
        earlier = [validated for validated in run.best if validated["step"] < run.step]
        ranked = [*earlier, run.validated]
        # The sort is stable, so of equal scores the earlier step stays first.
        ranked.sort(key=lambda validated: score(validated, metric), reverse=True)
        # The very best is always known: `run.patience` counts from it.
        run.best = ranked[: max(1, keep)]
    return [int(validated["step"]) for validated in run.best[:keep]]


def out_of_patience(run: Run) -> bool:
    """Whether `run.patience` validations in a row were not the best so far."""
    limits = run.config.run
    if limits.patience == 0 or not run.best:
        return False
    most_steps = limits.patience * limits.eval_every
    return run.step - run.best[0]["step"] >= most_steps


def exported_step(run: Run) -> int:
    """The step whose weights the run exports at its end."""
    if run.config.run.patience == 0 or not run.best:
        return run.step
    return int(run.best[0]["step"])


def return_to_best(run: Run) -> None:
    """With `run.patience`, load the weights of the best checkpoint; all ranks take part.

    Raises:
        UserError: that checkpoint is not there any more.
    """
    step = exported_step(run)
    if step == run.step:
        return
    # The checkpoint may be the one that is being written.
    run.saver.finish()
    quick = run.config.checkpoint.verify == "quick"
    path = checkpoint.find(run.checkpoints, quick, before_step=step + 1)
    if path is None or path.name != f"step_{step}":
        raise UserError(
            f"{run.checkpoints}: step_{step}, the best, is not there any more; export another one"
        )
    if dist.get_rank() == 0:
        print(f"the best validation was at step {step}: its weights are exported")
    load(run.engine, path, job_layout(run.config.parallel, dist.get_world_size()))
