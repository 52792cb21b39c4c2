"""Problems of how a run is validated on a task, besides the loss."""

from __future__ import annotations

from collections.abc import Iterator

from janus_pt.config.content import Sections
from janus_pt.config.messages import Problem
from janus_pt.config.parallel_schema import ParallelConfig
from janus_pt.config.run_schema import ValidationConfig
from janus_pt.utils.errors import UserError


def validation_problems(sections: Sections) -> Iterator[Problem]:
    """Problems of the section `validation`, by itself and with the others."""
    validation, parallel = sections.validation, sections.parallel
    if validation is None:
        return
    if sections.data and not sections.data.valid:
        yield ("validation",), "needs the validation of the loss: set data.valid, too"
    if parallel:
        yield from _layout_problems(parallel)
    yield from _task_problems(validation)


def _layout_problems(parallel: ParallelConfig) -> Iterator[Problem]:
    """Layouts in which a model cannot decode while it trains."""
    for name, most in (("pipeline_parallel_size", 1), ("zero_stage", 2)):
        value = getattr(parallel, name)
        if value > most:
            reason = (
                "decodes with weights that are whole or sharded over tensor-parallel ranks, "
                f"but parallel.{name} is {value}: lower it to {most}, or remove this section"
            )
            yield ("validation",), reason


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
