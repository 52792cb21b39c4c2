"""A rank that dies, freezes or hangs ends the job in time, and is named."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.jobs import job, run
from tests.support.runs import write_run_config

pytestmark = pytest.mark.slow
TIMEOUT_S, MARGIN_S = 8.0, 30.0
"""Tests run on loaded machines; without us a frozen rank would be waited for half an hour."""
LONG_S = 600.0
"""A process that is gone is not waited for as long as one that may still come."""


@pytest.mark.parametrize(
    ("rank", "number", "timeout_s", "expected"),
    [
        (1, signal.SIGKILL, LONG_S, "rank 1 is gone, last at step"),
        (0, signal.SIGKILL, LONG_S, "rank 0 is gone, last at step"),
        (1, signal.SIGSTOP, TIMEOUT_S, "rank 1 gave no sign of life for"),
        (0, signal.SIGSTOP, TIMEOUT_S, "rank 0 gave no sign of life for"),
    ],
)
def test_a_rank_that_falls_silent_ends_the_job(
    tmp_path: Path, rank: int, number: signal.Signals, timeout_s: float, expected: str
) -> None:
    config = write_run_config(
        tmp_path,
        run__max_steps=100000,
        run__eval_every=0,
        run__peer_timeout=timeout_s,
        checkpoint__every=10**5,
        data__num_workers=0,
    )
    with job(config, ranks=2) as running:
        running.wait_for_step(tmp_path / "run/metrics.jsonl", 3)
        start = time.monotonic()
        running.send(number, rank)
        other = running.ranks[1 - rank]
        other.join((0 if timeout_s == LONG_S else timeout_s) + MARGIN_S)
        assert other.exitcode == 13, f"{other.exitcode} after {time.monotonic() - start} s"
        running.kill()
    lines = [line for line in running.output.read_text().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: rank {1 - rank}, step "), lines
    assert expected in lines[0].partition("): ")[2] and "--resume auto" in lines[0]
    assert "Traceback" not in running.output.read_text()


def test_a_rank_that_lives_but_hangs_is_named(tmp_path: Path) -> None:
    config = write_run_config(
        tmp_path, run__max_steps=100, run__peer_timeout=TIMEOUT_S, data__num_workers=0
    )
    with job(config, ranks=2, SABOTAGE="1:7:hang") as running:
        assert running.wait(TIMEOUT_S + MARGIN_S + 30) == [13, 13]
    output = running.output.read_text()
    assert (
        "error: rank 0, step 7 (training): rank 1 is still at step 7 (reading)" in output
        and "Traceback" not in output
    )


def test_a_rank_whose_python_is_blocked_as_a_whole_is_named_and_ends(tmp_path: Path) -> None:
    """In C code that keeps the interpreter lock: no thread of that process can do anything."""
    config = write_run_config(
        tmp_path, run__max_steps=100, run__peer_timeout=TIMEOUT_S, data__num_workers=0
    )
    with job(config, ranks=2, SABOTAGE="1:7:block") as running:
        assert running.wait(TIMEOUT_S + MARGIN_S + 30) == [13, 13]
    [line] = [line for line in running.output.read_text().splitlines() if "error: " in line]
    assert line.startswith("error: rank 0, step 7 (training): rank 1 gave no sign of life for"), (
        line
    )
    # Where it stood at its last sign of life, which it gives by time and not by step.
    assert re.search(r"last at step [1-7] \(", line), line


def test_a_rank_with_bad_data_names_itself_and_the_others_leave(tmp_path: Path) -> None:
    config = write_run_config(
        tmp_path, run__max_steps=100, data__num_workers=0, data__batch_unit="sequences"
    )
    shard = tmp_path / "corpus/shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[int(np.load(shard.with_suffix(".idx.npy"))[33, 0])] ^= 1
    shard.write_bytes(content)
    codes, output = run(config, "data.global_batch_size=8", "data.micro_batch_size=2", ranks=2)
    assert sorted(codes, key=str) == [13, 2]
    [line] = [line for line in output.splitlines() if "sample 33" in line]
    assert line.startswith(f"error: rank {codes.index(2)}, step ") and str(shard) in line
    assert f"rank {codes.index(13)}, step " in output and "Traceback" not in output
