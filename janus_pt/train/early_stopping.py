"""The best validations of a run: which they are, when there has been none for too long, and the way back to them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.distributed as dist

from janus_pt.checkpoint import store as checkpoint
from janus_pt.checkpoint.layout import layout
from janus_pt.config.schema import Config
from janus_pt.train.run import Run
from janus_pt.utils.errors import UserError


def score(config: Config, validated: Mapping[str, float]) -> float:
    """How good a validation is: its `validation.metric`, or less its loss where nothing is decoded."""
    value = (
        validated.get(config.validation.metric, math.nan)
        if config.validation
        else -validated["loss"]
    )
    return value if math.isfinite(value) else -math.inf


def record_validation(run: Run) -> list[int]:
    """Take the validation of this very step among the best ones, if it is; the steps whose checkpoints are to be kept.

    Of equally good ones the earliest counts.
    """
    keep, config = run.config.checkpoint.keep_best, run.config
    if run.validated.get("step") == run.step and score(config, run.validated) > -math.inf:
        others = [found for found in run.best if found["step"] < run.step]
        run.best = sorted([*others, run.validated], key=lambda found: -score(config, found))[
            : max(1, keep)
        ]
    return [int(found["step"]) for found in run.best[:keep]]


def out_of_patience(run: Run) -> bool:
    """Whether none of the last `run.patience` validations was the best so far."""
    limits = run.config.run
    if not limits.patience or not run.best:
        return False
    return run.step - run.best[0]["step"] >= limits.patience * limits.eval_every


def return_to_best(run: Run) -> None:
    """With `run.patience`, take the weights of the best checkpoint again, to export them; all ranks take part."""
    if not run.config.run.patience or not run.best or run.best[0]["step"] == run.step:
        return
    run.saver.finish()
    step = int(run.best[0]["step"])
    path = checkpoint.find(run.checkpoints, run.config.checkpoint.verify == "quick", step + 1)
    if path is None or path.name != f"step_{step}":
        raise UserError(
            f"{run.checkpoints}: step_{step}, the best, is not there any more; export another one"
        )
    if dist.get_rank() == 0:
        print(f"the best validation was that of step {step}: its weights are exported")
    checkpoint.load(run.engine, path, layout(run.config, dist.get_world_size()))
