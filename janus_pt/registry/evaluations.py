"""The reports of `janus-pt evaluate task` beside a model in MLflow."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_pt.train.report.mlflow_store import metric_key
from janus_pt.utils.errors import UserError

TABLE, FOLDER = "evaluation.json", "evaluation"
"""Artifacts of the run: MLflow's table with a row for each mode, and the reports themselves."""


@dataclass(frozen=True)
class Evaluation:
    """A report and the file it is in."""

    path: Path
    report: dict[str, Any]


def read_evaluation(path: Path) -> Evaluation:
    """Read a report; `UserError` if the file holds none."""
    try:
        report = json.loads(path.read_text("utf-8"))
        _ = [row["mode"] for row in report["rows"]], report["task"], report["split"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: no report of janus-pt evaluate task; give its --json file"
        ) from None
    return Evaluation(path, report)


def log_evaluations(evaluations: Sequence[Evaluation], model_id: str) -> None:
    """Log metrics, tables, reports and predictions to the active run, metrics for its model."""
    import mlflow

    for evaluation in evaluations:
        for row in evaluation.report["rows"]:
            mlflow.log_metrics(_metrics(evaluation.report, row), model_id=model_id)
        for file in (evaluation.path, *_predictions(evaluation)):
            mlflow.log_artifact(str(file), FOLDER)
    if evaluations:
        mlflow.log_table(_table(evaluations), TABLE)


def _metrics(report: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
    start = f"{report['split']}/{report['task']}/{row['mode']}"
    return {metric_key(f"{start}/{name}"): value for name, value in row["metrics"].items()}


def _predictions(evaluation: Evaluation) -> list[Path]:
    """The files of predictions, found beside a report that was copied with them."""
    names = [Path(row["predictions"]).name for row in evaluation.report["rows"]]
    files = [evaluation.path.with_name(name) for name in names]
    return [file for file in files if file.is_file()]


def _table(evaluations: Sequence[Evaluation]) -> dict[str, list[Any]]:
    """Columns; None where a task does not have another's metric."""
    rows = []
    for evaluation in evaluations:
        report = evaluation.report
        for row in report["rows"]:
            head = {name: report[name] for name in ("task", "split", "sentences")}
            speed = {name: row[name] for name in ("decoder_passes", "sentences_per_s")}
            rows.append({**head, "mode": row["mode"], **row["metrics"], **speed})
    names = dict.fromkeys(name for row in rows for name in row)
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        for name in names:
            columns[name].append(row.get(name))
    return dict(columns)
