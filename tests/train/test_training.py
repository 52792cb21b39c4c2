"""Training from the command line: it learns, it stops, it goes on bit for bit."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from janus_pt.export.folder import load_export
from tests.support.runs import kill_at_step, launch, losses, read_records, write_run_config


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps on one rank."""
    folder = tmp_path_factory.mktemp("unbroken")
    done = launch("pretrain.py", "--config", str(write_run_config(folder)), "--profile", "3-4")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_leaves_what_it_promises(unbroken: Path) -> None:
    run = unbroken / "run"
    records = read_records(run / "metrics.jsonl")
    trained = [r for r in records if "loss/total" in r]
    assert [r["step"] for r in trained] == list(range(1, 21))
    keys = {"loss/ar", "loss/nar", "loss/aux", "kl/ar_aux", "kl/aux_nar", "kl/ar_nar"}
    keys |= {"lr", "grad_norm", "tokens", "tokens_per_s"}
    keys |= {"time/data", "time/forward_backward", "time/update", "time/checkpoint"}
    # Of a CPU no peak is known.
    assert all(keys <= r.keys() and "mfu" not in r for r in trained)
    valid = [r for r in records if "valid/loss/total" in r]
    assert [r["step"] for r in valid] == [0, 10, 20]
    for stream in ("ar", "nar", "aux"):
        assert valid[-1][f"valid/loss/{stream}"] < valid[0][f"valid/loss/{stream}"]
    assert (run / "loss.png").stat().st_size > 1000
    kept = sorted(p.name for p in (run / "checkpoints").glob("step_*"))
    assert (
        kept == ["step_15", "step_20"] and (run / "checkpoints" / "latest").read_text() == "step_20"
    )


def test_a_trace_has_the_steps_that_were_asked_for(unbroken: Path) -> None:
    [trace] = (unbroken / "run" / "profile").iterdir()
    assert trace.name == "trace_3-4_rank_0.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    # An update of each of the two groups of parameters in both steps.
    updates = [event for event in events if event["name"].startswith("Optimizer.step#AdamW")]
    assert len(updates) == 4


def test_the_export_is_the_trained_model(unbroken: Path) -> None:
    export = load_export(unbroken / "run" / "export")
    saved = torch.load(
        unbroken / "run/checkpoints/step_20/mp_rank_00_model_states.pt", weights_only=False
    )["module"]
    for name, tensor in export.state.items():
        assert torch.equal(tensor, saved[f"model.{name}"][: len(tensor)]), (
            name
        )  # the table's padding is left out


@pytest.mark.slow
def test_killed_and_resumed_is_the_unbroken_run(tmp_path: Path) -> None:
    """Two ranks in bfloat16; the campaign of faults has float32."""
    config = str(write_run_config(tmp_path, precision__dtype="bfloat16", run__max_steps=30))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        arguments = ["--config", config, "--set", f"run.output_dir={folder}"]
        if folder == broken:
            step = random.randint(6, 25)
            print("killed at step", step)
            kill_at_step(step, broken / "metrics.jsonl", *arguments, ranks=2)
            assert (broken / "checkpoints" / "latest").exists() and not (broken / "export").exists()
        done = launch("pretrain.py", *arguments, "--resume", "auto", ranks=2)
        assert done.returncode == 0, done.stderr
    ours, theirs = (losses(folder / "metrics.jsonl") for folder in (broken, whole))
    assert ours == theirs
    assert theirs[30, "valid/loss/ar"] < theirs[0, "valid/loss/ar"]
    mine, yours = (load_file(folder / "export" / "model.safetensors") for folder in (broken, whole))
    assert all(torch.equal(mine[name], tensor) for name, tensor in yours.items())


def test_a_second_run_does_not_write_over_the_first(unbroken: Path) -> None:
    before = (unbroken / "run" / "metrics.jsonl").read_bytes()
    done = launch("pretrain.py", "--config", str(unbroken / "config.json"))
    assert (
        done.returncode == 2 and "--resume auto" in done.stderr and "Traceback" not in done.stderr
    )
    assert (unbroken / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_damaged_or_foreign_checkpoints_are_refused(unbroken: Path) -> None:
    config = str(unbroken / "config.json")
    other = launch(
        "pretrain.py", "--config", config, "--resume", "auto", "--set", "model.hidden_size=64"
    )
    assert other.returncode == 2 and "model.hidden_size (was 32, is 64)" in other.stderr
    for weights in unbroken.glob("run/checkpoints/step_*/mp_rank_00_model_states.pt"):
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    damaged = launch("pretrain.py", "--config", config, "--resume", "auto")
    assert (
        damaged.returncode == 2 and weights.name in damaged.stderr and "damaged" in damaged.stderr
    )
    assert "Traceback" not in damaged.stderr


@pytest.mark.slow
def test_an_unreachable_tracking_server_costs_one_warning(tmp_path: Path) -> None:
    config = write_run_config(tmp_path, tracking__enabled=True, tracking__uri="http://127.0.0.1:9")
    done = launch("pretrain.py", "--config", str(config))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("MLflow") == 1 and "warning" in done.stderr
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 20
