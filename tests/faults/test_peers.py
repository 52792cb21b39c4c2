"""A rank that dies, freezes or hangs ends the job in time, and is named."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from jobs import job
from runs import write_run_config

pytestmark = pytest.mark.slow
TIMEOUT_S, MARGIN_S = 8.0, 30.0
"""Tests run on loaded machines; without us a frozen rank would be waited for half an hour."""


@pytest.mark.parametrize(
    ("rank", "number", "told"),
    [
        (1, signal.SIGKILL, "rank 1 is gone, last at step"),
        (0, signal.SIGKILL, "rank 0"),
        (1, signal.SIGSTOP, "rank 1 "),
        (0, signal.SIGSTOP, "rank 0"),
    ],
)
def test_a_rank_that_falls_silent_ends_the_job(tmp_path: Path, rank: int, number: signal.Signals, told: str) -> None:
    config = write_run_config(
        tmp_path,
        run__max_steps=100000,
        run__eval_every=0,
        run__peer_timeout=TIMEOUT_S,
        checkpoint__every=10**5,
        data__num_workers=0,
    )
    with job(config, ranks=2) as running:
        running.wait_for_step(tmp_path / "run/metrics.jsonl", 3)
        start = time.monotonic()
        running.send(number, rank)
        other = running.ranks[1 - rank]
        other.join(TIMEOUT_S + MARGIN_S)
        assert other.exitcode == 13, f"{other.exitcode} after {time.monotonic() - start} s"
        running.kill()
    lines = [line for line in running.told.read_text().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: rank {1 - rank}, step "), lines
    assert told in lines[0].partition("): ")[2] and "--resume auto" in lines[0]
    assert "Traceback" not in running.told.read_text()
