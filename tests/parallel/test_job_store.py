"""Ranks that meet, and part, at their own pace: real processes and torch's own store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

# The first rank ends at once after it has parted; the second one sleeps before it looks again.
PROGRAM = """
import os, time
import torch.distributed as dist
from janus_pt.parallel import job_store

class LateStore(job_store.JobStore):
    def wait(self, *arguments):
        time.sleep(3)
        return super().wait(*arguments)

dist.init_process_group("gloo")
if dist.get_rank() == 1:
    job_store.JobStore = LateStore
job_store.{leave}()
print("rank", dist.get_rank(), "has left", flush=True)
os._exit(0)
"""


def leave_by(function: str) -> list[tuple[int, str]]:
    """Exit code and output of two ranks that leave a job by `function`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(leave=function)],
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [
        (process.returncode, output) for process, output in zip(processes, outputs, strict=True)
    ]


def test_the_rank_that_has_the_store_goes_last() -> None:
    left = leave_by("part")
    assert [code for code, _ in left] == [0, 0], left
    assert all("has left" in output for _, output in left)


def test_a_rank_that_only_met_may_find_the_store_gone() -> None:
    """What `part` is for: without it this test's second rank fails."""
    assert leave_by("meet")[1][0] != 0
