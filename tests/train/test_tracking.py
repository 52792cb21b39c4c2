"""MLflow: what is sent is read back through its own client; what fails is reported once and harms nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from janus_pt.checks import read_config
from janus_pt.config.reader import to_json
from janus_pt.config.schema import Config
from janus_pt.export.folder import save_export
from janus_pt.train.report import tracking
from janus_pt.train.report.metrics_file import MetricsFile
from janus_pt.train.report.mlflow_store import resolve_store
from janus_pt.train.report.tracking import Tracker, flatten
from janus_pt.utils.redact import redact
from tests.support.models import tiny_model, tokenizer_bytes
from tests.support.runs import ROOT

WAIT_S = 60
"""On a loaded machine, MLflow's import and its first answer take tens of seconds."""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with MLflow's tables, which take seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "CLOSING_RETRY_SECONDS", 0.05)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def configuration(folder: Path, uri: str, system_metrics: bool = False, lr: float = 1e-3) -> Config:
    folder.mkdir(exist_ok=True)
    return Config.model_validate(
        {
            "model": {"vocab_size": 100},
            "data": {
                "train": [{"path": "ftp://me:secret@host/x"}],
                "global_batch_size": 8,
                "micro_batch_size": 8,
            },
            "run": {"output_dir": str(folder), "max_steps": 10},
            "optimizer": {"lr": lr},
            "tracking": {"uri": uri, "experiment": "testing", "system_metrics": system_metrics},
        }
    )


def start_tracker(config: Config, resumed: bool) -> Tracker:
    return Tracker(config.run, config.tracking, redact(to_json(config)), resumed)


def runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("testing")
    return list(client.search_runs([experiment.experiment_id]))


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [
        (metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, key)
    ]


def revision() -> str | None:
    """The git revision of this tree, by git; None where it is no checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened for {WAIT_S} s"
        time.sleep(0.05)


def test_run_is_read_back(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    folder = tmp_path / "run"
    tracker = start_tracker(configuration(folder, uri, system_metrics=True), resumed=False)
    metrics = MetricsFile(folder / "metrics.jsonl")
    for step in range(1, 6):
        metrics.append({"step": step, "loss/ar": 1 / step, "lr": step * 1e-4})
    metrics.append({"step": 5, "valid/loss/ar": 0.25})
    wait_for(lambda: (folder / "mlflow_run.json").exists())
    (folder / "export").mkdir()
    (folder / "export" / "model.safetensors").write_bytes(b"weights")
    tracker.log_artifact(folder / "export", "export")
    tracker.log_artifact(folder / "metrics.jsonl")
    run_id = json.loads((folder / "mlflow_run.json").read_text())["run_id"]
    wait_for(lambda: history(uri, run_id, "system/cpu_utilization_percentage"))
    metrics.append({"step": 6, "loss/ar": 1 / 6, "lr": 6e-4})
    tracker.finish()

    [run] = runs(uri)
    assert run.info.run_id == run_id and run.info.status == "FINISHED"
    assert run.data.tags.get("mlflow.source.git.commit") == revision()
    assert history(uri, run_id, "loss/ar") == [(step, 1 / step) for step in range(1, 7)]
    assert history(uri, run_id, "valid/loss/ar") == [(5, 0.25)]
    assert (
        run.data.params["optimizer.lr"] == "0.001" and run.data.params["model.hidden_size"] == "512"
    )
    assert run.data.params["data.train.0.path"] == "ftp://me:***@host/x"
    client = MlflowClient(uri)
    assert {file.path for file in client.list_artifacts(run_id)} == {
        "config.json",
        "export",
        "metrics.jsonl",
    }
    local = client.download_artifacts(run_id, "export/model.safetensors", str(tmp_path))
    assert Path(local).read_bytes() == b"weights"
    config = read_config(client.download_artifacts(run_id, "config.json", str(tmp_path)))
    assert config.optimizer.lr == 1e-3 and "secret" not in config.data.train[0].path


def test_finetuning_is_nested_in_the_run_that_made_its_model(
    tmp_path: Path, uri: str, empty_store: Path
) -> None:
    """In the store that has this run; in another one a tag names it."""
    start_tracker(configuration(tmp_path / "pretraining", uri), resumed=False).finish()
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes(300))
    model = tiny_model(vocab_size=300)
    run_id = json.loads((tmp_path / "pretraining/mlflow_run.json").read_text())["run_id"]
    save_export(
        tmp_path / "export", model.state_dict(), model.config, tmp_path / "tokenizer.model", run_id
    )
    shutil.copy(empty_store, tmp_path / "other.db")
    tags = []
    for store in (uri, f"sqlite:///{tmp_path / 'other.db'}"):
        config = configuration(tmp_path / "finetuning", store)
        started = config.run.model_copy(update={"init_from": str(tmp_path / "export")})
        start_tracker(config.model_copy(update={"run": started}), resumed=False).finish()
        tags += [run.data.tags for run in runs(store) if run.info.run_id != run_id]
    assert [tag["init_from_run"] for tag in tags] == [run_id, run_id]
    assert [tag.get("mlflow.parentRunId") for tag in tags] == [run_id, None]


def test_resumed_job_continues_the_run(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "run"
    metrics = MetricsFile(folder / "metrics.jsonl")
    first = start_tracker(configuration(folder, uri), resumed=False)
    for step in range(1, 8):
        metrics.append({"step": step, "loss/ar": float(step)})
    first.finish("KILLED")
    assert [run.info.status for run in runs(uri)] == ["KILLED"]

    metrics.truncate_after(4)
    for step in range(5, 11):
        metrics.append({"step": step, "loss/ar": float(step)})
    start_tracker(configuration(folder, uri, lr=0.5), resumed=True).finish("FAILED")
    [run] = runs(uri)
    assert run.info.status == "FAILED" and run.data.params["optimizer.lr"] == "0.001"
    assert history(uri, run.info.run_id, "loss/ar") == [
        (step, float(step)) for step in range(1, 11)
    ]

    start_tracker(configuration(folder, uri, lr=0.5), resumed=False).finish()
    assert sorted(run.info.status for run in runs(uri)) == ["FAILED", "FINISHED"]


def test_metrics_of_an_outage_are_sent_later(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    log_batch, calls = MlflowClient.log_batch, []

    def unreliable(self: Any, run_id: str, **content: Any) -> Any:
        calls.append(content)
        if len(calls) % 3:
            raise ConnectionError("gone")
        return log_batch(self, run_id, **content)

    monkeypatch.setattr(MlflowClient, "log_batch", unreliable)
    monkeypatch.setattr(tracking, "METRICS_PER_CALL", 4)
    folder = tmp_path / "run"
    metrics = MetricsFile(folder / "metrics.jsonl")
    tracker = start_tracker(configuration(folder, uri), resumed=False)
    for step in range(1, 4):
        metrics.append({"step": step, "loss/ar": float(step)})
        seen = len(calls)
        wait_for(lambda seen=seen: len(calls) > seen)
    wait_for(lambda: not tracker._pending)
    tracker.finish()
    [run] = runs(uri)
    assert history(uri, run.info.run_id, "loss/ar") == [(step, float(step)) for step in range(1, 4)]
    assert run.data.params["optimizer.lr"] == "0.001" and run.info.status == "FINISHED"
    assert capsys.readouterr().err.count("warning: MLflow") == 1


def test_an_artifact_that_cannot_be_stored_does_not_keep_the_run_open(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = start_tracker(configuration(tmp_path / "run", uri), resumed=False)
    tracker.log_artifact(tmp_path / "nothing")
    tracker.finish()
    assert [run.info.status for run in runs(uri)] == ["FINISHED"]
    assert capsys.readouterr().err.count("warning: MLflow") == 1


UNREACHABLE = """
import sys
from pathlib import Path
from janus_pt.config.reader import to_json
from janus_pt.config.schema import Config
from janus_pt.train.report.tracking import Tracker
folder = Path(sys.argv[1])
config = Config.model_validate({
    "model": {"vocab_size": 100}, "run": {"output_dir": str(folder), "max_steps": 1},
    "data": {"train": [{"path": "x"}], "global_batch_size": 8, "micro_batch_size": 8},
    "tracking": {"uri": sys.argv[2]},
})
tracker = Tracker(config.run, config.tracking, to_json(config), resumed=False)
tracker.log_artifact(folder)
tracker.finish()
"""


def test_unreachable_server_costs_one_warning(tmp_path: Path) -> None:
    started = time.monotonic()
    command = [sys.executable, "-c", UNREACHABLE, str(tmp_path), "http://me:secret@127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (
        time.monotonic() - started < 45
    )  # mostly the import of MLflow; its own retries would take minutes
    assert done.returncode == 0 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert (
        line.startswith("warning: MLflow at http://me:***@127.0.0.1:9 fails")
        and str(tmp_path) in line
    )
    assert "secret" not in line


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("nonsense://x", "fails"), ("sqlite:////proc/none/mlflow.db", "fails"), ("http://", "fails")],
)
def test_bad_uri_costs_one_warning(
    tmp_path: Path, uri: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start_tracker(configuration(tmp_path / "run", uri), resumed=False).finish()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: MLflow at {uri} {expected}")


def test_mlflow_absent_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    tracker = start_tracker(configuration(tmp_path / "run", "sqlite:///x.db"), resumed=False)
    tracker.finish()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow at sqlite:///x.db is not installed")


def test_server_that_hangs_delays_the_end_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "_open_session", lambda *_: time.sleep(2))
    tracker = start_tracker(configuration(tmp_path / "run", "http://slow"), resumed=False)
    started = time.monotonic()
    tracker.finish(seconds=0.2)
    assert time.monotonic() - started < 1.5
    assert capsys.readouterr().err.count("has not taken everything within 0.2 s") == 1


def test_relative_sqlite_path_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved, artifacts = resolve_store("sqlite:///runs/mlflow.db?timeout=5")
    assert (
        resolved == f"sqlite:///{tmp_path}/runs/mlflow.db?timeout=5"
        and artifacts == f"file://{tmp_path}/runs/mlartifacts"
    )
    assert (tmp_path / "runs").is_dir()
    assert resolve_store("http://host:5000/x") == ("http://host:5000/x", None)


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": [{"d": True}, 2.5]}, "e": None, "f": {}}
    assert dict(flatten(nested)) == {"a.b": "1", "a.c.0.d": "True", "a.c.1": "2.5", "e": "None"}
