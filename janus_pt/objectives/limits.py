"""Problems of the configuration's objective: its weights, and what else of the configuration it
does not go with."""

from __future__ import annotations

from collections.abc import Iterator

from janus_pt.config.messages import Problem
from janus_pt.config.objectives import OBJECTIVES, ObjectiveRow, weight_names
from janus_pt.config.parallel_schema import ParallelConfig
from janus_pt.config.schema import ModelConfig, ObjectiveConfig


def objective_problems(
    objective: ObjectiveConfig, model: ModelConfig | None, parallel: ParallelConfig | None
) -> Iterator[Problem]:
    """Problems of the objective, by itself and with the sections that are given."""
    row = OBJECTIVES[objective.name]
    yield from _weight_problems(objective, row)
    if objective.r_drop and row.no_r_drop:
        reason = f'objective "{objective.name}" {row.no_r_drop}: set it to 0'
        yield ("objective", "r_drop"), reason
    if objective.label_smoothing and not row.label_smoothing:
        reason = f'objective "{objective.name}" has no token for each slot to be smoothed'
        yield ("objective", "label_smoothing"), f"{reason}: set it to 0"
    if parallel and parallel.pipeline_parallel_size > 1 and row.no_pipeline:
        reason = f'objective "{objective.name}" {row.no_pipeline}: set it to 1'
        yield ("parallel", "pipeline_parallel_size"), reason
    if model:
        yield from _model_problems(objective.name, row, model)


def _weight_problems(objective: ObjectiveConfig, row: ObjectiveRow) -> Iterator[Problem]:
    for name in weight_names():
        if getattr(objective, name) and name not in row.weights:
            has = f"only {', '.join(row.weights)}" if row.weights else "no weights"
            reason = f'objective "{objective.name}" has no such term, it has {has}: set it to 0'
            yield ("objective", name), reason
    if row.weights and not any(getattr(objective, name) for name in row.weights):
        raised = ", ".join(row.weights)
        yield (
            ("objective",),
            f"all weights are 0, so nothing would be learnt: raise one of {raised}",
        )


def _model_problems(name: str, row: ObjectiveRow, model: ModelConfig) -> Iterator[Problem]:
    if model.ar_stream == "content" and not row.content_stream:
        reason = f'objective "{name}" predicts from mask symbols only: set it to "query"'
        yield ("model", "ar_stream"), reason
    if len(model.target_frame.prefix) > 1 and not row.long_prefix:
        reason = f'objective "{name}" takes all tokens behind the first for text'
        yield ("model", "target_prefix"), f"{reason}: start from a model with one token there"
    if model.causal_self_attention and not row.causal_self_attention:
        allowed = [f'"{other}"' for other, its in OBJECTIVES.items() if its.causal_self_attention]
        reason = f'is for P_NAR alone, of objective {" or ".join(allowed)}, but this is "{name}"'
        yield ("model", "causal_self_attention"), f"{reason}: set it to false"
