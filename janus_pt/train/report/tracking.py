"""MLflow, beside the training and never in its way.

A thread of its own follows `metrics.jsonl` and sends what is new, so that the training thread spends nothing on it,
a slow or absent server delays nothing, and what an outage kept back is sent when the server is there again: the
file is the queue.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_pt.config.reader import to_json
from janus_pt.config.schema import Config
from janus_pt.export.folder import read_export_config
from janus_pt.export.write_run import MLFLOW_RUN
from janus_pt.train.report.metrics_file import metrics_after
from janus_pt.utils.errors import warn
from janus_pt.utils.files import write_atomically
from janus_pt.utils.redact import redact

POLL_SECONDS = 2.0
RETRY_SECONDS = 30.0
METRICS_PER_CALL, PARAMS_PER_CALL, PARAM_CHARACTERS = 1000, 100, 500
"""What every MLflow store takes."""

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the thread tries again itself; MLflow's own retries take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment that MLflow reads; what the user has set stays."""

ORIGIN = "init_from_run"
"""The tag with the id of the run that trained the model of `run.init_from`."""

Task = Callable[[Any, str], object]
"""Something to do with a client and a run id."""


class Tracker:
    """One MLflow run for a job, continued by the jobs that resume it; made on the first rank only.

    The run's id is kept in `mlflow_run.json` of the run folder; `resumed` says whether to go on with that run. The
    metrics are read from `metrics.jsonl`, which must be cut back to the step resumed from before a tracker is made.
    A failure is told once, on stderr, and the thread goes on trying.
    """

    def __init__(self, config: Config, resumed: bool) -> None:
        self.config = config
        self.folder = Path(config.run.output_dir)
        self._resumed = resumed
        self._tasks: deque[Task] = deque(
            [lambda client, run_id: _log_config(client, run_id, config)]
        )
        self._closing = threading.Event()
        self._status = "FINISHED"
        self._warned = False
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file, or the files of a folder, under `folder` of the run's artifacts; returns at once."""

        def store(client: Any, run_id: str) -> None:
            upload = client.log_artifacts if path.is_dir() else client.log_artifact
            upload(run_id, str(path), folder)

        self._tasks.append(store)

    def finish(self, status: str = "FINISHED", seconds: float = 60.0) -> None:
        """Send what is left and end the run as FINISHED, FAILED or KILLED; waits `seconds` at most."""
        self._status = status
        self._closing.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"has not taken everything within {seconds:g} s")

    def _work(self) -> None:
        session: Session | None = None
        while True:
            closing = self._closing.is_set()
            try:
                session = session or _open(self.config, self._resumed)
                self._resumed = True
                session.send(self.folder / "metrics.jsonl")
                self._do_tasks(session, last=closing)
                if closing:
                    session.close(self._status)
            except ImportError as error:
                return self._warn(f"is not installed ({error})")
            except Exception as error:  # MLflow, its stores and drivers raise anything, and none may end a training
                self._warn(f"fails ({_first_line(error)})")
                if session:
                    session.stop_system_metrics()
                session = None
            if closing:
                return None
            self._closing.wait(POLL_SECONDS if session else RETRY_SECONDS)

    def _do_tasks(self, session: Session, last: bool) -> None:
        """Do what was asked for, in order; what fails is tried again unless this is the `last` time."""
        while self._tasks:
            try:
                self._tasks[0](session.client, session.run_id)
            except Exception as error:
                if not last:
                    raise
                self._warn(f"fails ({_first_line(error)})")
            self._tasks.popleft()

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"MLflow at {self.config.tracking.uri} {what}; training goes on, the metrics are in {self.folder}"
            )


@dataclass
class Session:
    """A connection to the store: the run, the last step it has of each metric, how far the file has been read."""

    client: Any
    run_id: str
    last_step: dict[str, int]
    system: Any | None
    offset: int = 0

    def send(self, metrics: Path) -> None:
        """Log every metric that the run does not have yet."""
        from mlflow.entities import Metric

        if not metrics.exists():
            return
        records, offset = metrics_after(metrics, self.offset)
        now = int(time.time() * 1000)
        new = [
            Metric(key, value, now, int(record["step"]))
            for record in records
            for key, value in record.items()
            if key != "step" and record["step"] > self.last_step.get(key, -1)
        ]
        for start in range(0, len(new), METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=new[start : start + METRICS_PER_CALL])
        self.offset = offset

    def close(self, status: str) -> None:
        """End the run."""
        self.stop_system_metrics()
        self.client.set_terminated(self.run_id, status)

    def stop_system_metrics(self) -> None:
        """End the thread that logs the machine's load."""
        if self.system:
            self.system.finish()
            self.system = None


def _open(config: Config, resumed: bool) -> Session:
    """Connect to the store, and go on with the run of the run folder or start one there."""
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    folder, settings = Path(config.run.output_dir), config.tracking
    uri, artifacts = _store(settings.uri)
    client = MlflowClient(uri)
    run = _previous_run(client, folder, uri) if resumed else None
    if run is None:
        tags = _origin(client, config.run.init_from)
        run = client.create_run(
            _experiment(client, settings.experiment, artifacts), tags=tags, run_name=folder.name
        )
        content = {"run_id": run.info.run_id, "uri": redact(uri)}
        write_atomically(folder / MLFLOW_RUN, json.dumps(content, indent=1))
    run_id = run.info.run_id
    last_step = {
        metric.key: metric.step for metric in run.data._metric_objs
    }  # the public view has no steps
    system = None
    if settings.system_metrics:
        system = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        system.start()
    return Session(client, run_id, last_step, system)


def _previous_run(client: Any, folder: Path, uri: str) -> Any | None:
    """The run that `mlflow_run.json` names, running again, if the store has it."""
    from mlflow import MlflowException

    try:
        saved = json.loads((folder / MLFLOW_RUN).read_text())
        if saved["uri"] != redact(uri):
            return None
        run = client.get_run(saved["run_id"])
    except (OSError, ValueError, KeyError):
        return None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if run.info.lifecycle_stage == "deleted":
        return None
    client.update_run(run.info.run_id, status="RUNNING")
    return run


def _origin(client: Any, init_from: str | None) -> dict[str, str]:
    """Tags that name the run which trained the exported model `init_from`: the parent run, if the store has it."""
    from mlflow import MlflowException

    origin = read_export_config(init_from).mlflow_run_id if init_from else None
    if origin is None:
        return {}
    try:
        client.get_run(origin)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {ORIGIN: origin}
        raise
    return {ORIGIN: origin, "mlflow.parentRunId": origin}


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name, artifacts))


def _store(uri: str) -> tuple[str, str | None]:
    """The URI with an absolute path, and where artifacts go; for SQLite beside the file, else the server knows."""
    path, question, query = uri.removeprefix("sqlite:///").partition("?")
    if path == uri.partition("?")[0]:
        return uri, None
    file = Path(path).resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file}{question}{query}", (file.parent / "mlartifacts").as_uri()


def _log_config(client: Any, run_id: str, config: Config) -> None:
    """Log the flattened configuration as parameters, and the whole as `config.json`; passwords are masked.

    MLflow's parameters cannot change: a run that was resumed with other values keeps the first ones.
    """
    from mlflow.entities import Param

    content = redact(to_json(config))
    known = client.get_run(run_id).data.params
    new = [
        Param(key, value[:PARAM_CHARACTERS])
        for key, value in flatten(json.loads(content))
        if key not in known
    ]
    for start in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])
    client.log_text(run_id, content, "config.json")


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and texts of all that is in nested dicts and lists."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if items is None:
        yield key, str(value)
    else:
        for name, inner in items:
            yield from flatten(inner, f"{key}.{name}" if key else str(name))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
