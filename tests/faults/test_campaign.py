"""The short form of `campaign.py`, and a launcher that starts again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.faults.jobs import last_step
from tests.support.runs import ROOT, TIMEOUT_S, environment, write_run_config


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not() -> None:
    call = [sys.executable, "-m", "tests.faults.campaign", "--runs", "3", "--seed", "7"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert (
        "3 kills" in done.stdout
        and "equal bit for bit" in done.stdout
        and "exactly once" in done.stdout
    )


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed(tmp_path: Path) -> None:
    """A rank dies; the others leave, and all are started again from the last checkpoint, once."""
    config = write_run_config(tmp_path, run__max_steps=40, run__eval_every=0, data__num_workers=0)
    call = [
        str(Path(sys.executable).with_name("torchrun")),
        "--nproc-per-node=2",
        "--max-restarts=1",
        "--standalone",
    ]
    call += [str(ROOT / "launchers/pretrain.py"), "--config", str(config)]
    output = (tmp_path / "stderr.txt").open("wb")
    call += ["--resume", "auto"]
    with subprocess.Popen(
        call, env=environment(), stderr=output, start_new_session=True
    ) as torchrun:
        try:
            wait_for(
                lambda: (
                    (tmp_path / "run/checkpoints/latest").exists() or torchrun.poll() is not None
                )
            )
            ranks = [
                p for p in psutil.Process(torchrun.pid).children() if p.environ().get("RANK") == "1"
            ]
            ranks[0].kill()
            assert torchrun.wait(TIMEOUT_S) == 0, (tmp_path / "stderr.txt").read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(torchrun.pid, signal.SIGKILL)
    assert last_step(tmp_path / "run") == 40 and (tmp_path / "run/export").exists()
    assert "(exitcode: -9) local_rank: 1" in (tmp_path / "stderr.txt").read_text()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
