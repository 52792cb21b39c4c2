"""Trainings in processes of their own that a test signals, kills and looks into while they run.

The ranks are forked from a server process that has imported everything already, which makes a start a matter of a
second; apart from that they are what a launcher would start.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.support.ranks import free_port
from tests.support.runs import TIMEOUT_S, read_records

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["janus_pt.train.loop"])
SETTING = dict(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1")


class Job:
    """A training of `ranks` processes that goes on with what there is; their output is added to the file `output`."""

    def __init__(self, config: Path, *overrides: str, ranks: int = 1, **environment: str) -> None:
        self.output = config.parent / "stderr.txt"
        place = {**SETTING, **environment, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        place["MASTER_PORT"] = str(free_port())
        self.ranks: list[ForkServerProcess] = [
            CONTEXT.Process(
                target=_enter,
                args=(config, overrides, {**place, "RANK": str(r), "LOCAL_RANK": str(r)}),
            )
            for r in range(ranks)
        ]
        for rank in self.ranks:
            rank.start()

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        """Send a signal to a rank."""
        process = self.ranks[rank]
        if process.is_alive():
            os.kill(process.pid or 0, number)

    def kill(self) -> None:
        """`kill -9` of all ranks that are left."""
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.join()

    def wait(self, seconds: float = TIMEOUT_S) -> list[int | None]:
        """Wait for all ranks to end; their exit codes, None for those that have not."""
        deadline = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        return [rank.exitcode for rank in self.ranks]

    def wait_for_step(self, metrics: Path, step: int) -> None:
        """Until the metrics have this step."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (
            metrics.exists() and any(record["step"] >= step for record in read_records(metrics))
        ):
            assert any(rank.is_alive() for rank in self.ranks), (
                f"ended before step {step}: {self.output.read_text()}"
            )
            assert time.monotonic() < deadline, f"no step {step} within {TIMEOUT_S} s"
            time.sleep(0.01)


@contextmanager
def job(config: Path, *overrides: str, ranks: int = 1, **environment: str) -> Iterator[Job]:
    """A job, of which nothing is left behind the block."""
    running = Job(config, *overrides, ranks=ranks, **environment)
    try:
        yield running
    finally:
        running.kill()


def run(
    config: Path, *overrides: str, ranks: int = 1, **environment: str
) -> tuple[list[int | None], str]:
    """Run a job to its end: exit codes, and its output."""
    with job(config, *overrides, ranks=ranks, **environment) as running:
        before = len(running.output.read_text()) if running.output.exists() else 0
        codes = running.wait()
        return codes, running.output.read_text()[before:]


def _enter(config: Path, overrides: Sequence[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    output = os.open(config.parent / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)

    from janus_pt.checks import read_config
    from janus_pt.launch import run_training, world_size
    from janus_pt.utils.errors import entry_point

    arguments = argparse.Namespace(
        resume="auto",
        dry_run=False,
        replay=environment.get("REPLAY"),
        profile=environment.get("PROFILE"),
        memory_snapshot="MEMORY_SNAPSHOT" in environment,
    )
    if "SABOTAGE" in environment:
        importlib.import_module("tests.faults.sabotage").begin(environment["SABOTAGE"])
    entry_point(
        lambda: run_training(read_config(config, overrides, world_size()), arguments, world_size())
    )


def latest(run_folder: Path) -> str:
    """Name of the latest checkpoint."""
    return (run_folder / "checkpoints" / "latest").read_text()


def last_step(run_folder: Path) -> int:
    """The last step in the metrics."""
    return max(int(record["step"]) for record in read_records(run_folder / "metrics.jsonl"))
