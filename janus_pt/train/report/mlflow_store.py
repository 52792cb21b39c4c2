"""Connecting to an MLflow store: the client, its experiment, a run by its id.

MLflow is imported when a store is opened: the import takes seconds, and a run with
`tracking.enabled` false needs no MLflow at all.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

DEFAULTS = {
    # The tracker tries again itself; MLflow's own retries take minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables that MLflow reads; what the user has set stays."""


def open_client(uri: str) -> MlflowClient:
    """A client of the store at `uri`, which logs nothing to the terminal."""
    # Before the import, which reads some of them.
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # Both report every retry and every table they make, in the middle of the progress line.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def resolve_store(uri: str) -> tuple[str, str | None]:
    """The URI with an absolute path, and where artifacts go: None if the server decides.

    For an SQLite file its folder is made, and artifacts go beside it.
    """
    path, question_mark, query = uri.removeprefix("sqlite:///").partition("?")
    is_sqlite = path != uri.partition("?")[0]
    if not is_sqlite:
        return uri, None
    file = Path(path).resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    artifacts = (file.parent / "mlartifacts").as_uri()
    return f"sqlite:///{file}{question_mark}{query}", artifacts


def experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """The id of an experiment, which is created if the store lacks it."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name, artifacts))
    return str(experiment.experiment_id)


def metric_key(name: str) -> str:
    """A metric's name without the characters that MLflow refuses."""
    return re.sub(r"[^\w ./-]", "", name)


def find_run(client: MlflowClient, run_id: str) -> MlflowRun | None:
    """The run of that id, or None if the store has no such run."""
    from mlflow import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        # Everything else (no connection, no permission) must not look like a run that is missing.
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
