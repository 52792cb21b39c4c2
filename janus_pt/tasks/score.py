"""Score files: any system's predictions against references, and the overall score of GLGE."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from janus_pt.tasks.bleu import paired_bootstrap
from janus_pt.tasks.metrics import DEFAULT_TOKENIZER, check_metrics, compute
from janus_pt.tasks.outputs import pair_up
from janus_pt.tasks.table import TASKS
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import check_equally_long, read_lines

GLGE = "glge/"
"""Beginning of the names of GLGE's tasks."""


def score_files(
    predictions: str,
    references: Sequence[str],
    metrics: Sequence[str],
    sources: str | None = None,
    baseline: str | None = None,
    tokenize: str = DEFAULT_TOKENIZER,
) -> dict[str, Any]:
    """Score a file of predictions, one a line.

    Args:
        references: files with a reference for each prediction.
        sources: file whose identical lines are one output; see `pair_up`.
        baseline: file of another system's predictions; adds `paired_bootstrap`.
        tokenize: sacrebleu's tokenizer for BLEU.

    Returns:
        metric -> value, and `signatures`, `lines`, `outputs` (fewer than lines where sources group
        them).

    Raises:
        UserError: a file cannot be read or has another number of lines; a metric is unknown.
    """
    check_metrics(metrics, tokenize)
    optional = [name for name in (sources, baseline) if name]
    lines = {name: read_lines(name) for name in (predictions, *references, *optional)}
    check_equally_long(lines)
    reference_lines = [lines[name] for name in references]
    source_lines = lines[sources] if sources else None
    outputs = pair_up(lines[predictions], reference_lines, source_lines)
    scores = compute(outputs, metrics, tokenize)
    result: dict[str, Any] = {
        **scores.values,
        "signatures": scores.signatures,
        "lines": len(lines[predictions]),
        "outputs": len(outputs),
    }
    if baseline:
        # The baseline is grouped in the same way, so that both have one prediction for an output.
        other = pair_up(lines[baseline], reference_lines, source_lines)
        result["paired_bootstrap"] = paired_bootstrap(outputs, other.predictions, tokenize)
    return result


def glge_overall(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """GLGE's overall score and each task's part in it: the plain mean of the task's values.

    Distinct counts like any other value, as on GLGE's leaderboard.

    Args:
        scores: task name (`glge/…`) -> value name -> value, 0 to 100.

    Returns:
        `overall`, and task name -> its mean.

    Raises:
        UserError: one of the eight tasks, or a value of one, is missing.
    """
    means = {}
    for name, task in TASKS.items():
        if not name.startswith(GLGE):
            continue
        if name not in scores:
            raise UserError(f"the overall score needs all eight tasks, but {name} is missing")
        missing = [value for value in task.overall_values if value not in scores[name]]
        if missing:
            raise UserError(f"{name}: the overall score needs its {', '.join(missing)}")
        means[name] = mean(scores[name][value] for value in task.overall_values)
    return {"overall": mean(means.values()), **means}


@dataclass(frozen=True)
class _TaskReport:
    """What is read of a report of `launchers/evaluate.py`; `rows`: mode -> metric -> value."""

    path: str
    task: str
    split: str
    rows: dict[str, dict[str, float]]


def overall_of_reports(paths: Sequence[str], mode: str) -> dict[str, float]:
    """`glge_overall` of the rows for `mode` in reports of `launchers/evaluate.py`.

    Raises:
        UserError: a file is no report or has no such row, a task has two reports, or the reports
            are of different splits.
    """
    reports: dict[str, _TaskReport] = {}
    for path in paths:
        report = _read_report(path)
        if mode not in report.rows:
            modes = ", ".join(report.rows)
            raise UserError(f"{path}: has no row for mode {mode!r}, only {modes}")
        if report.task in reports:
            earlier = reports[report.task].path
            raise UserError(f"{path}: is about {report.task}, as {earlier} is; give one of them")
        reports[report.task] = report
        first = next(iter(reports.values()))
        if report.split != first.split:
            raise UserError(
                f"{path}: is about split {report.split}, {first.path} about {first.split}; take "
                "one for all tasks"
            )
    return glge_overall({task: report.rows[mode] for task, report in reports.items()})


def _read_report(path: str) -> _TaskReport:
    try:
        # JSON of Python holds NaN, of which no mean can be taken.
        content = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
        rows = {}
        for row in content["rows"]:
            rows[row["mode"]] = {name: float(value) for name, value in row["metrics"].items()}
        return _TaskReport(path, content["task"], content["split"], rows)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path}: no report of launchers/evaluate.py") from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no score")
