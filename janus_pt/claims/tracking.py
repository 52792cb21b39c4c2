"""The comparison in MLflow: scores on the runs of the trainings, and the report as a run of its own."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_pt.claims.decode import read_row
from janus_pt.claims.plan import Cell
from janus_pt.config.schema import TrackingConfig
from janus_pt.train.report.tracking import DEFAULTS
from janus_pt.utils.errors import warn

REPORT_RUN = "report"
FILES = ("report.md", "report.json", "curves.png", "speeds.png")


def open_experiment(output: Path, cells: Sequence[Cell]) -> None:
    """Make the store and the experiment before many processes at once would."""
    tracking = cells[0].config.tracking
    if not tracking.enabled:
        return
    try:
        client = _client(tracking)
        if client.get_experiment_by_name(tracking.experiment) is None:
            beside = (
                (output / "mlartifacts").absolute().as_uri()
                if tracking.uri.startswith("sqlite:///")
                else None
            )
            client.create_experiment(tracking.experiment, beside)
    except Exception as error:  # MLflow, its stores and drivers raise anything
        warn(f"MLflow at {tracking.uri} fails ({error}); the work goes on")


def track_report(output: Path, cells: Sequence[Cell]) -> None:
    """Log every way's metrics to its training's run, and the report's files to the run `report` of the experiment.

    A store that fails is told; the files are there all the same.
    """
    tracking = cells[0].config.tracking
    if not tracking.enabled:
        return
    try:
        client = _client(tracking)
        for cell in cells:
            run_id = json.loads((cell.run / "mlflow_run.json").read_text())["run_id"]
            for way in cell.system.ways:
                for name, value in read_row(cell.folder, way)["metrics"].items():
                    client.log_metric(run_id, re.sub(r"[^\w ./-]", "", f"test/{way}/{name}"), value)
        experiment = client.get_experiment_by_name(tracking.experiment).experiment_id
        known = client.search_runs([experiment], f"attributes.run_name = '{REPORT_RUN}'")
        report = known[0] if known else client.create_run(experiment, run_name=REPORT_RUN)
        for name in FILES:
            client.log_artifact(report.info.run_id, str(output / name))
        client.set_terminated(report.info.run_id)
    except Exception as error:
        warn(f"MLflow at {tracking.uri} has not taken the report ({error}); it is in {output}")


def _client(tracking: TrackingConfig) -> Any:
    from mlflow import MlflowClient

    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking.uri)
