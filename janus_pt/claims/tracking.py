"""The comparison in MLflow: scores on the runs of the trainings, and the report as a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from janus_pt.claims.decode import read_row
from janus_pt.claims.plan import Cell
from janus_pt.train.report.mlflow_store import (
    experiment_id,
    metric_key,
    open_client,
    resolve_store,
)
from janus_pt.utils.errors import warn

if TYPE_CHECKING:
    from mlflow import MlflowClient

REPORT_RUN = "report"
FILES = ("report.html", "report.md", "claims.json", "curves.png", "speeds.png")


def open_experiment(cells: Sequence[Cell]) -> None:
    """Make the store and the experiment before many processes at once would."""
    tracking = cells[0].config.tracking
    if not tracking.enabled:
        return
    try:
        uri, artifacts = resolve_store(tracking.uri)
        experiment_id(open_client(uri), tracking.experiment, artifacts)
    except Exception as error:  # MLflow, its stores and drivers raise anything
        warn(f"MLflow at {tracking.uri} fails ({error}); the work goes on")


def track_report(output: Path, cells: Sequence[Cell]) -> None:
    """Log every way's metrics to its training's run, and the report's files to the run `report`.

    A store that fails costs one warning; the files are in `output` all the same.
    """
    tracking = cells[0].config.tracking
    if not tracking.enabled:
        return
    try:
        uri, artifacts = resolve_store(tracking.uri)
        client = open_client(uri)
        for cell in cells:
            _log_scores(client, cell)
        experiment = experiment_id(client, tracking.experiment, artifacts)
        _log_report(client, experiment, output)
    except Exception as error:
        warn(f"MLflow at {tracking.uri} has not taken the report ({error}); it is in {output}")


def _log_scores(client: MlflowClient, cell: Cell) -> None:
    """The test scores of a cell, on the run that its training has made."""
    run_id = json.loads((cell.run / "mlflow_run.json").read_text())["run_id"]
    for way in cell.system.ways:
        for name, value in read_row(cell.folder, way)["metrics"].items():
            client.log_metric(run_id, metric_key(f"test/{way}/{name}"), value)


def _log_report(client: MlflowClient, experiment: str, output: Path) -> None:
    """The report's files, in the run of an earlier report if there is one."""
    known = client.search_runs([experiment], f"attributes.run_name = '{REPORT_RUN}'")
    report = known[0] if known else client.create_run(experiment, run_name=REPORT_RUN)
    for name in FILES:
        client.log_artifact(report.info.run_id, str(output / name))
    client.set_terminated(report.info.run_id)
