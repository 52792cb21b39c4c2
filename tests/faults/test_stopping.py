"""Asked to stop, a run saves at the next step, says so, and goes on later as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from janus_pt.train.watch.stop_requests import SLURM_MARGIN_S, deadline, describe_stop
from tests.faults.jobs import job, last_step, latest, run
from tests.support.ranks import free_port
from tests.support.runs import ROOT, TIMEOUT_S, command, environment, losses, write_run_config


@pytest.mark.slow
def test_every_way_to_stop_saves_leaves_with_its_code_and_goes_on_exactly(tmp_path: Path) -> None:
    config, folder = (
        write_run_config(tmp_path, run__max_steps=60, run__eval_every=0, data__num_workers=0),
        tmp_path / "run",
    )
    step = 0
    for way, code in (
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGUSR1, 138),
        ("stop", 10),
    ):
        with job(config) as running:
            running.wait_for_step(folder / "metrics.jsonl", step + 3)
            if isinstance(way, signal.Signals):
                running.send(way)
            else:
                (folder / way).touch()
            assert running.wait() == [code]
        output, step = running.output.read_text(), last_step(folder)
        assert latest(folder) == f"step_{step}" and step < 60
        assert (
            f"stopped by {describe_stop(code)}: saved after step {step}" in output
            and "Traceback" not in output
        )
    assert not (folder / "stop").exists()
    codes, output = run(config, "run.max_minutes=0.0001")
    assert codes == [11] and "stopped by the time limit" in output and last_step(folder) < 60
    codes, output = run(config, SLURM_JOB_END_TIME=str(int(time.time()) + 60))
    assert codes == [11] and last_step(folder) < 60
    assert run(config)[0] == [0]
    assert run(config, f"run.output_dir={tmp_path / 'whole'}")[0] == [0]
    assert losses(folder / "metrics.jsonl") == losses(tmp_path / "whole" / "metrics.jsonl")
    ours, theirs = (
        load_file(tmp_path / name / "export/model.safetensors") for name in ("run", "whole")
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    config, folder = (
        write_run_config(tmp_path, run__max_steps=4000, run__eval_every=0),
        tmp_path / "run",
    )
    with job(config, ranks=2) as running:
        running.wait_for_step(folder / "metrics.jsonl", 3)
        running.send(signal.SIGUSR1, rank=1)
        assert running.wait() == [138, 138]
    assert latest(folder) == f"step_{last_step(folder)}"
    assert f"saved after step {last_step(folder)}" in running.output.read_text()


@pytest.mark.slow
def test_what_slurm_or_a_terminal_send_to_a_whole_deepspeed_job_saves_too(tmp_path: Path) -> None:
    """Launcher, ranks and workers all get SIGTERM, and the launcher then sends it to its ranks and workers again."""
    config, folder = (
        write_run_config(tmp_path, run__max_steps=4000, run__eval_every=0),
        tmp_path / "run",
    )
    call = command("pretrain.py", "--config", str(config), ranks=2)
    output = (tmp_path / "stderr.txt").open("wb")
    with subprocess.Popen(
        call, env=environment(), cwd=ROOT, start_new_session=True, stderr=output
    ) as process:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not (folder / "metrics.jsonl").exists() or last_step(folder) < 3:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            family = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGTERM)
            assert not psutil.wait_procs(family, timeout=60)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert latest(folder) == f"step_{last_step(folder)}"
    assert b"Traceback" not in (tmp_path / "stderr.txt").read_bytes()


LOOP = """
import sys, time
import torch.distributed as dist
from janus_pt.config.run_schema import RunConfig
from janus_pt.train.watch import stop_requests as signals
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[1]}", rank=0, world_size=1)
signals.FORWARDED_S = float(sys.argv[3])
with signals.StopRequests(RunConfig(output_dir=sys.argv[2], max_steps=1)) as requests:
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
        if sys.argv[4] == "agree" and (code := requests.agreed()):
            raise SystemExit(code)
"""


def looping(folder: Path, forwarded_s: float, agree: str) -> subprocess.Popen[str]:
    arguments = [str(free_port()), str(folder), str(forwarded_s), agree]
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    # Some versions of gloo print a line of their own first.
    assert "ready\n" in iter(process.stdout.readline, "")
    return process


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    with looping(tmp_path, 0.0, "never") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_a_forwarded_signal_is_no_second_signal(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal, and the launcher then ends its ranks with SIGTERM."""
    with looping(tmp_path, 60.0, "agree") as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (130, 143)


def test_the_time_limit_is_the_sooner_of_ours_and_slurms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    now = time.time()
    assert deadline(None) == float("inf")
    assert deadline(2.0) == pytest.approx(now + 120, abs=1)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(now + 1000)))
    assert deadline(None) == deadline(60.0) == int(now + 1000) - SLURM_MARGIN_S
    assert deadline(2.0) == pytest.approx(now + 120, abs=1)
