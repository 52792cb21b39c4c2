"""MLflow's server gone, frozen and back: training waits for none of it, and in the end nothing is missing."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from janus_pt.train.report import tracking
from janus_pt.train.report.metrics_file import MetricsFile
from tests.faults.mlflow_server import MlflowServer
from tests.support.runs import launch, read_records, write_run_config
from tests.train.test_tracking import configuration, history, start_tracker, wait_for

pytestmark = pytest.mark.slow
AT_ONCE_S = 1.0
"""What 60 steps may lose to a server that is not there: they lose milliseconds, but tests run on loaded machines, and
a frozen server keeps each call of its client for seconds."""

CALL_S = 5
"""What one call may take. On a loaded machine the server, thawed again, needs seconds for an answer."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.3)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(CALL_S))


class Training:
    """What a training does with its tracker: it writes records and finishes."""

    def __init__(self, folder: Path, uri: str, resumed: bool = False) -> None:
        self.config = configuration(folder, uri)
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.tracker = start_tracker(self.config, resumed)

    def steps(self, first: int, last: int) -> float:
        """Report these steps; the seconds it took."""
        start = time.monotonic()
        for step in range(first, last + 1):
            self.metrics.append({"step": step, "loss/ar": 1 / step})
        self.tracker.log_artifact(self.metrics.path)
        return time.monotonic() - start


def state_of(server: MlflowServer, folder: Path) -> tuple[str, dict[int, float]]:
    """Status and metrics of the run that belongs to a run folder, by the store itself."""
    from mlflow import MlflowClient

    run_id = json.loads((folder / "mlflow_run.json").read_text())["run_id"]
    return MlflowClient(server.store).get_run(run_id).info.status, dict(
        history(server.store, run_id, "loss/ar")
    )


def complete(last: int) -> dict[int, float]:
    return {step: 1 / step for step in range(1, last + 1)}


def test_the_server_listens_to_this_machine_only(server: MlflowServer) -> None:
    assert server.process is not None
    family = [
        psutil.Process(server.process.pid),
        *psutil.Process(server.process.pid).children(recursive=True),
    ]
    addresses = {
        c.laddr.ip
        for p in family
        for c in p.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_a_server_that_answers_too_late_at_the_end_is_asked_again(
    server: MlflowServer, tmp_path: Path, quick: None
) -> None:
    """A busy machine: the first calls get no answer within their time limit."""
    server.send(signal.SIGSTOP)
    thaw = threading.Timer(CALL_S + 2, server.send, [signal.SIGCONT])
    thaw.start()
    training = Training(tmp_path / "run", server.uri)
    training.steps(1, 3)
    training.tracker.finish()
    thaw.join()
    assert state_of(server, tmp_path / "run") == ("FINISHED", complete(3))


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_state_of_the_run_is_reported(
    server: MlflowServer, tmp_path: Path, quick: None, status: str
) -> None:
    training = Training(tmp_path / "run", server.uri)
    training.steps(1, 3)
    training.tracker.finish(status)
    assert state_of(server, tmp_path / "run") == (status, complete(3))


def test_a_frozen_server_delays_nobody_and_gets_everything(
    server: MlflowServer, tmp_path: Path, quick: None
) -> None:
    training = Training(tmp_path / "run", server.uri)
    training.steps(1, 20)
    wait_for(lambda: (tmp_path / "run" / "mlflow_run.json").exists())
    server.send(signal.SIGSTOP)
    try:
        waited = training.steps(21, 40)
        time.sleep(CALL_S + 1)  # longer than a call may take
        waited += training.steps(41, 80)
    finally:
        server.send(signal.SIGCONT)
    training.steps(81, 100)
    training.tracker.finish()
    assert waited < AT_ONCE_S
    assert state_of(server, tmp_path / "run") == ("FINISHED", complete(100))


def test_a_server_frozen_at_the_end_is_waited_for_only_so_long(
    server: MlflowServer, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(tmp_path / "run", server.uri)
    training.steps(1, 5)
    wait_for(lambda: (tmp_path / "run" / "mlflow_run.json").exists())
    server.send(signal.SIGSTOP)
    try:
        start = time.monotonic()
        training.tracker.finish(seconds=1.0)
        assert time.monotonic() - start < 3 and "warning: MLflow" in capsys.readouterr().err
    finally:
        server.send(signal.SIGCONT)
    training.tracker._thread.join(30)
    again = Training(
        tmp_path / "run", server.uri, resumed=True
    )  # what is missing goes with the next job
    again.steps(6, 8)
    again.tracker.finish()
    assert state_of(server, tmp_path / "run") == ("FINISHED", complete(8))


def test_a_whole_training_beside_a_frozen_server(server: MlflowServer, tmp_path: Path) -> None:
    """It ends as if nothing were there; the next job brings the server up to date."""
    config = write_run_config(
        tmp_path, tracking__enabled=True, tracking__uri=server.uri, tracking__system_metrics=False
    )
    server.send(signal.SIGSTOP)
    try:
        done = launch("pretrain.py", "--config", str(config))
    finally:
        server.send(signal.SIGCONT)
    assert done.returncode == 0 and done.stderr.count("warning: MLflow") == 1, done.stderr
    more = launch(
        "pretrain.py", "--config", str(config), "--resume", "auto", "--set", "run.max_steps=22"
    )
    assert more.returncode == 0, more.stderr
    status, metrics = state_of(server, tmp_path / "run")
    reported = {
        int(r["step"]): r["loss/ar"]
        for r in read_records(tmp_path / "run/metrics.jsonl")
        if "loss/ar" in r
    }
    assert status == "FINISHED" and metrics == reported


def test_a_server_that_comes_late_goes_and_comes_back_gets_everything(
    server: MlflowServer, tmp_path: Path, quick: None
) -> None:
    server.stop()
    training = Training(tmp_path / "run", server.uri)
    waited = training.steps(1, 20)
    time.sleep(1)
    server.start()
    wait_for(lambda: (tmp_path / "run" / "mlflow_run.json").exists())
    training.steps(21, 30)
    server.stop()
    waited += training.steps(31, 70)
    time.sleep(1)
    server.start()
    training.steps(71, 80)
    training.tracker.finish()
    assert waited < AT_ONCE_S
    assert state_of(server, tmp_path / "run") == ("FINISHED", complete(80))
