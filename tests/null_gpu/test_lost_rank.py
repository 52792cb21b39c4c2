"""Two ranks whose collectives are NCCL's: one is lost, and the other one's device waits for ever."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.null_gpu.environment import ROOT, command, environment, missing
from tests.support.ranks import free_port
from tests.support.runs import TIMEOUT_S, read_records, write_run_config

pytestmark = [
    pytest.mark.null_gpu,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

GONE_S = 30.0
"""A process that is gone ends the job in this time, whatever `run.peer_timeout` is."""
TIMEOUT = 20.0
EXIT_PEER_LOST = 13


class TwoRanks:
    """A training of two processes; while `lose` has been called, collectives that begin do not end."""

    def __init__(self, folder: Path, timeout_s: float, nccl_notices: bool) -> None:
        self._hang, self._error = folder / "hang", folder / "error"
        self._nccl_notices = nccl_notices
        self.metrics = folder / "run" / "metrics.jsonl"
        self.log = folder / "rank0.log"
        config = write_run_config(
            folder,
            # Heads too small for FlexAttention: nothing is compiled.
            model__num_attention_heads=4,
            precision__dtype="bfloat16",
            data__num_workers=0,
            schedule__warmup_steps=0,
            checkpoint__every=10**6,
            run__max_steps=10**6,
            run__eval_every=0,
            run__max_left_out=10**6,
            run__peer_timeout=timeout_s,
        )
        port = str(free_port())
        self.ranks = []
        for rank in (0, 1):
            place = environment(
                NULL_GPU_HANG=str(self._hang),
                NULL_GPU_NCCL_ERROR=str(self._error),
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            )
            with (folder / f"rank{rank}.log").open("w") as log:
                self.ranks.append(
                    subprocess.Popen(
                        command(str(ROOT / "launchers/pretrain.py"), "--config", str(config)),
                        cwd=ROOT,
                        env=place,
                        stdout=log,
                        stderr=log,
                    )
                )

    def wait_for_steps(self) -> None:
        """Until both train."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (self.metrics.exists() and len(read_records(self.metrics)) > 3):
            assert self.ranks[0].poll() is None and time.monotonic() < deadline, (
                self.log.read_text()[-3000:]
            )
            time.sleep(0.1)

    def lose(self, number: signal.Signals) -> None:
        """Send the second rank a signal, after which NCCL has nobody to talk to."""
        os.kill(self.ranks[1].pid, number)
        self._hang.touch()
        if self._nccl_notices:
            self._error.touch()

    def errors(self) -> list[str]:
        """What the first rank has said."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if line.startswith("error: ")]


@contextlib.contextmanager
def two_ranks(folder: Path, timeout_s: float, nccl_notices: bool) -> Iterator[TwoRanks]:
    """Two ranks that train, of which nothing is left behind the block."""
    job = TwoRanks(folder, timeout_s, nccl_notices)
    try:
        job.wait_for_steps()
        yield job
    finally:
        for rank in job.ranks:
            rank.kill()
            rank.wait()


@pytest.mark.parametrize("nccl_notices", [False, True])
def test_a_killed_rank_is_named_within_half_a_minute(tmp_path: Path, nccl_notices: bool) -> None:
    with two_ranks(tmp_path, 600.0, nccl_notices) as job:
        job.lose(signal.SIGKILL)
        assert job.ranks[0].wait(GONE_S) == EXIT_PEER_LOST
        [line] = job.errors()
        assert ": rank 1 is gone, last at step " in line and "--resume auto" in line


@pytest.mark.parametrize("nccl_notices", [False, True])
def test_a_stopped_rank_is_named_within_the_time_limit(tmp_path: Path, nccl_notices: bool) -> None:
    with two_ranks(tmp_path, TIMEOUT, nccl_notices) as job:
        job.lose(signal.SIGSTOP)
        # A second for the beats, a checkpoint's last seconds, and what a loaded machine needs.
        assert job.ranks[0].wait(TIMEOUT + GONE_S) == EXIT_PEER_LOST
        [line] = job.errors()
        assert ": rank 1 gave no sign of life for " in line


def test_a_device_that_hangs_on_all_ranks_ends_them(tmp_path: Path) -> None:
    """No rank is behind, and NCCL raises nothing: without us its watchdog would abort a minute later."""
    with two_ranks(tmp_path, TIMEOUT, nccl_notices=False) as job:
        job.lose(signal.SIGCONT)  # which changes nothing
        codes = [rank.wait(TIMEOUT + GONE_S) for rank in job.ranks]
        assert codes == [EXIT_PEER_LOST] * 2
        [line] = job.errors()
        # One may have launched a step more than the other.
        assert re.search(r"no rank came past step |rank [01] is still at ", line), line
