"""What is wrong with the part of a configuration that says how a run is validated, and when it ends by that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from janus_pt.config.schema import CheckpointConfig, RunConfig, ValidationConfig
from janus_pt.utils.errors import UserError

Problem = tuple[tuple[str | int, ...], str]


def validation_problems(valid: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of the sections in `valid`, which are fine by themselves."""
    run, checkpoint, data, parallel = (
        valid.get(name) for name in ("run", "checkpoint", "data", "parallel")
    )
    validation: ValidationConfig | None = valid.get("validation")
    if run and run.patience and checkpoint:
        yield from _patience_problems(run, checkpoint)
    if validation is None:
        return
    if data and not data.valid:
        yield ("validation",), "comes with that of the loss: set data.valid, too"
    for name, most in (("pipeline_parallel_size", 1), ("zero_stage", 2)):
        if parallel and (value := getattr(parallel, name)) > most:
            reason = (
                "decodes with weights that are whole or sharded over tensor-parallel ranks, "
                f"but parallel.{name} is"
            )
            yield ("validation",), f"{reason} {value}: lower it to {most}, or remove this section"
    yield from _task_problems(validation)


def _patience_problems(run: RunConfig, checkpoint: CheckpointConfig) -> Iterator[Problem]:
    if not run.eval_every:
        yield ("run", "patience"), "counts validations: set run.eval_every, or patience to 0"
    elif run.eval_every % checkpoint.every:
        reason = (
            f"must be a multiple of checkpoint.every ({checkpoint.every}) where run.patience is set"
        )
        yield (
            ("run", "eval_every"),
            f"{reason}, so that what is best is saved, but is {run.eval_every}",
        )
    if not checkpoint.keep_best:
        yield (
            ("checkpoint", "keep_best"),
            "must be at least 1 where run.patience is set: what is best is exported",
        )


def _task_problems(validation: ValidationConfig) -> Iterator[Problem]:
    from janus_pt.generate.modes import MODES, check_scored_options  # imports torch: only here
    from janus_pt.tasks.metrics import check_metrics, values_to_maximize
    from janus_pt.tasks.table import find_task

    if validation.mode not in MODES:
        yield (
            ("validation", "mode"),
            f"must be one of {', '.join(MODES)}, but is {validation.mode!r}",
        )
    try:
        task = find_task(validation.task)
    except UserError as error:
        yield ("validation", "task"), str(error).removeprefix("task: ")
        return
    try:
        check_metrics(task.metrics)
    except UserError as error:
        yield ("validation", "task"), f"its metrics cannot be computed here: {error}"
    values = values_to_maximize(task.metrics)
    if validation.metric not in values:
        reason = f"must be one of {', '.join(values)} for this task, the higher the better"
        yield ("validation", "metric"), f"{reason}, but is {validation.metric!r}"
    if validation.mode in MODES:
        try:
            check_scored_options(
                validation.mode, **{**task.decoding.get(validation.mode, {}), **validation.options}
            )
        except UserError as error:
            yield ("validation", "options"), str(error)
