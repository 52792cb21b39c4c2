"""Real processes that talk over gloo; they stay for one job of several ranks after another: importing is paid once."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing as mp

from janus_pt.utils.processes import end_with_parent

TIMEOUT_S = 180


class Ranks:
    """Spawned processes, started when they are first needed; `run` calls a function in some of them as ranks."""

    def __init__(self) -> None:
        self.context = mp.get_context("spawn")
        self.answers = self.context.Queue()
        self.jobs: list[Any] = []
        self.processes: list[Any] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.join()

    def run(self, function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
        """What `function(*args)`, which must be importable, returns on every rank.

        An exception or a hang in any of them fails the caller.
        """
        while len(self.processes) < ranks:
            self._start()
        port = free_port()
        for rank in range(ranks):
            self.jobs[rank].put((ranks, port, function, args))
        answers = dict(self.answers.get(timeout=TIMEOUT_S) for _ in range(ranks))
        failed = [answer for ok, answer in answers.values() if not ok]
        assert not failed, "\n".join(failed)
        return [answers[rank][1] for rank in range(ranks)]

    def _start(self) -> None:
        self.jobs.append(self.context.Queue())
        arguments = (len(self.processes), self.jobs[-1], self.answers)
        self.processes.append(self.context.Process(target=_work, args=arguments))
        self.processes[-1].start()


_shared: list[Ranks] = []


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """`Ranks.run` in processes that all tests share; new ones after a failure."""
    if not _shared:
        _shared.append(Ranks())
        atexit.register(_shared[0].kill)
    try:
        return _shared[0].run(function, ranks, *args)
    except BaseException:
        _shared.pop().kill()
        raise


def free_port() -> int:
    """A port of this machine that is free now, below those that the system gives to any socket in the meantime."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", 15_000 + secrets.randbelow(15_000)))
            return int(probe.getsockname()[1])


def _work(rank: int, jobs: Any, answers: Any) -> None:
    # A test process that is killed runs no cleanup: its ranks must notice by themselves.
    end_with_parent()
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1"
    )
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    while True:
        ranks, port, function, args = jobs.get()
        os.environ.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), MASTER_PORT=str(port))
        torch.manual_seed(0)  # as in a new process, all ranks alike
        try:
            answers.put((rank, (True, function(*args))))
        except BaseException:
            sys.stdout.flush()
            answers.put((rank, (False, traceback.format_exc())))
