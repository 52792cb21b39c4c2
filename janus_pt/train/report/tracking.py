"""MLflow, beside the training and never in its way.

A thread of its own follows `metrics.jsonl` and sends new records. So the training thread spends
nothing on it, a slow or absent server delays nothing, and after an outage the missing records are
sent when the server is back: the file is the queue.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_pt.config.exported import read_export_config
from janus_pt.config.run_schema import RunConfig, TrackingConfig
from janus_pt.data.corpus import Corpus
from janus_pt.export.write_run import MLFLOW_RUN
from janus_pt.train.report.lineage import source_tags, training_input
from janus_pt.train.report.metrics_file import metrics_after
from janus_pt.train.report.mlflow_store import experiment_id, find_run, open_client, resolve_store
from janus_pt.utils.errors import warn
from janus_pt.utils.files import write_atomically
from janus_pt.utils.redact import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

POLL_SECONDS = 2.0
RETRY_SECONDS = 30.0
CLOSING_ATTEMPTS, CLOSING_RETRY_SECONDS = 5, 0.5
"""How often the end of a run is tried: five calls of 10 s (`mlflow_store.py`) fit into the minute
that `finish` waits, and a server that refuses at once costs two seconds."""
METRICS_PER_CALL, PARAMS_PER_CALL, PARAM_CHARACTERS = 1000, 100, 500
"""What every MLflow store accepts."""
MAX_ERROR_CHARACTERS = 200

ORIGIN = "init_from_run"
"""The tag with the id of the run that trained the model of `run.init_from`."""

MlflowCall = Callable[["MlflowClient", str], object]
"""Something to do with a client and a run id."""


class Tracker:
    """One MLflow run for a job, continued by the jobs that resume it. First rank only.

    The run's id is kept in `mlflow_run.json` of the run folder. The metrics are read from
    `metrics.jsonl`, which must be cut back to the step resumed from before a tracker is made.
    The first failure is reported on stderr, and the thread goes on trying.

    Args:
        config_json: the whole configuration, passwords masked.
        resumed: go on with the run of the run folder.
    """

    def __init__(
        self, run: RunConfig, settings: TrackingConfig, config_json: str, resumed: bool
    ) -> None:
        self._run = run
        self._settings = settings
        self._folder = Path(run.output_dir)
        self._resumed = resumed
        self._pending: deque[MlflowCall] = deque()
        self._pending.append(lambda client, run_id: _log_config(client, run_id, config_json))
        self._session: Session | None = None
        self._closing = threading.Event()
        self._status = "FINISHED"
        self._warned = False
        # A daemon: a server that hangs must not keep the process alive when `finish` gives up.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file, or a folder's files, under `folder` of the artifacts; returns at once."""

        def upload(client: MlflowClient, run_id: str) -> None:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), folder)
            else:
                client.log_artifact(run_id, str(path), folder)

        self._pending.append(upload)

    def log_corpora(self, corpora: Sequence[Corpus]) -> None:
        """Name the corpora as what the run reads; returns at once."""

        def log(client: MlflowClient, run_id: str) -> None:
            client.log_inputs(run_id, datasets=[training_input(corpus) for corpus in corpora])

        self._pending.append(log)

    def finish(self, status: str = "FINISHED", seconds: float = 60.0) -> None:
        """Send the rest and end the run as FINISHED, FAILED or KILLED; waits `seconds` at most."""
        self._status = status
        self._closing.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"has not taken everything within {seconds:g} s")

    def _work(self) -> None:
        try:
            self._follow()
        except ImportError as error:
            self._warn(f"is not installed ({error})")

    def _follow(self) -> None:
        """Send what is new until `finish` is called, then the rest and the end of the run."""
        while not self._closing.is_set():
            sent = self._send()
            self._closing.wait(POLL_SECONDS if sent else RETRY_SECONDS)
        # A server on a busy machine may miss the time limit of a call, and nobody asks later.
        for left in reversed(range(CLOSING_ATTEMPTS)):
            if self._send(closing=True, last=left == 0):
                return
            time.sleep(CLOSING_RETRY_SECONDS if left else 0)

    def _send(self, closing: bool = False, last: bool = False) -> bool:
        """Connect if need be, send what is new, and end the run if `closing`; True if all went well.

        Args:
            last: this is the last attempt, so a call that fails must not stop the others.
        """
        try:
            if self._session is None:
                self._session = _open_session(self._run, self._settings, self._resumed)
            # From now on the run exists: after an outage the thread goes on with it.
            self._resumed = True
            self._session.send(self._folder / "metrics.jsonl")
            self._make_calls(self._session, last)
            if closing:
                self._session.close(self._status)
            return True
        except ImportError:
            raise
        except Exception as error:
            # MLflow, its stores and drivers raise anything, and none may end a training.
            self._warn(f"fails ({first_line(error)})")
            if self._session is not None:
                self._session.stop_system_metrics()
            self._session = None
            return False

    def _make_calls(self, session: Session, last: bool) -> None:
        """Make the pending calls in order; one that fails is repeated unless this is the last time.

        At the last time the others must not suffer: the run must still be closed.
        """
        while self._pending:
            try:
                self._pending[0](session.client, session.run_id)
            except Exception as error:
                if not last:
                    raise
                self._warn(f"fails ({first_line(error)})")
            # Only now: a call that fails is still the first one after the next connection.
            self._pending.popleft()

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"MLflow at {self._settings.uri} {problem}; training goes on, "
                f"the metrics are in {self._folder}"
            )


@dataclass
class Session:
    """A connection to the store and its run.

    `last_step` is the last step the run had of each metric when the session began, `offset` the
    number of bytes of the metrics file that have been sent.
    """

    client: MlflowClient
    run_id: str
    last_step: dict[str, int]
    system_monitor: SystemMetricsMonitor | None
    offset: int = 0

    def send(self, metrics: Path) -> None:
        """Log every metric that the run does not have yet."""
        from mlflow.entities import Metric

        if not metrics.exists():
            return
        records, offset = metrics_after(metrics, self.offset)
        now_ms = int(time.time() * 1000)
        new = []
        for record in records:
            step = int(record["step"])
            for key, value in record.items():
                # A new session reads the file from its beginning: the store has the older steps.
                if key != "step" and step > self.last_step.get(key, -1):
                    new.append(Metric(key, value, now_ms, step))
        for start in range(0, len(new), METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=new[start : start + METRICS_PER_CALL])
        # Only when the store has taken all of them: else the next session sends them again.
        self.offset = offset

    def close(self, status: str) -> None:
        """End the run."""
        self.stop_system_metrics()
        self.client.set_terminated(self.run_id, status)

    def stop_system_metrics(self) -> None:
        """End the thread that logs the machine's load."""
        if self.system_monitor is not None:
            self.system_monitor.finish()
            self.system_monitor = None


def _open_session(run_config: RunConfig, settings: TrackingConfig, resumed: bool) -> Session:
    """Connect to the store, and go on with the run of the run folder or start one there."""
    uri, artifacts = resolve_store(settings.uri)
    client = open_client(uri)
    folder = Path(run_config.output_dir)
    run = _previous_run(client, folder, uri) if resumed else None
    if run is None:
        experiment = experiment_id(client, settings.experiment, artifacts)
        tags = {**source_tags(), **_origin_tags(client, run_config.init_from)}
        run = client.create_run(experiment, tags=tags, run_name=folder.name)
        content = {"run_id": run.info.run_id, "uri": redact(uri)}
        write_atomically(folder / MLFLOW_RUN, json.dumps(content, indent=1))
    # `run.data.metrics` has no steps, and `get_metric_history` would load every value of every
    # metric; the message of the wire format has the last value of each with its step.
    last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
    monitor = _start_system_metrics(run.info.run_id, uri) if settings.system_metrics else None
    return Session(client, run.info.run_id, last_step, monitor)


def _start_system_metrics(run_id: str, uri: str) -> SystemMetricsMonitor:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


def _previous_run(client: MlflowClient, folder: Path, uri: str) -> MlflowRun | None:
    """The run that `mlflow_run.json` names, marked as running again, if the store has it."""
    try:
        saved = json.loads((folder / MLFLOW_RUN).read_text())
        run_id, saved_uri = saved["run_id"], saved["uri"]
    except (OSError, ValueError, KeyError):
        return None
    # Another store may have a run of the same id only by accident.
    if saved_uri != redact(uri):
        return None
    run = find_run(client, run_id)
    if run is None or run.info.lifecycle_stage == "deleted":
        return None
    client.update_run(run_id, status="RUNNING")
    return run


def _origin_tags(client: MlflowClient, init_from: str | None) -> dict[str, str]:
    """Tags that name the run which trained the model `init_from`; none if it names no run.

    If the store has that run, it also becomes the parent run, which MLflow's pages show as a tree.
    """
    origin = read_export_config(init_from).mlflow_run_id if init_from else None
    if origin is None:
        return {}
    tags = {ORIGIN: origin}
    if find_run(client, origin) is not None:
        tags["mlflow.parentRunId"] = origin
    return tags


def _log_config(client: MlflowClient, run_id: str, config_json: str) -> None:
    """Log the flattened configuration as parameters, and the whole as `config.json`."""
    from mlflow.entities import Param

    # Parameters cannot change: a run that is resumed with other values keeps the first ones.
    logged = client.get_run(run_id).data.params
    new = []
    for key, value in flatten(json.loads(config_json)):
        if key not in logged:
            new.append(Param(key, value[:PARAM_CHARACTERS]))
    for start in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])
    client.log_text(run_id, config_json, "config.json")


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text of everything in nested dicts and lists (JSON)."""
    items: Any
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        yield key, str(value)
        return
    prefix = f"{key}." if key else ""
    for name, inner in items:
        yield from flatten(inner, f"{prefix}{name}")


def first_line(error: Exception) -> str:
    """The beginning of an error's message; servers put whole traces into theirs."""
    lines = str(error).splitlines()
    text = lines[0] if lines else type(error).__name__
    return text[:MAX_ERROR_CHARACTERS]
