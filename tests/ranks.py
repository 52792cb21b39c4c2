"""Processes that stay and run one job of several ranks after another: importing is paid once."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch.multiprocessing as mp
from distributed import free_port

TIMEOUT_S = 180


class Ranks:
    """`size` spawned processes; `run` calls a function in the first few of them as the ranks of a job over gloo."""

    def __init__(self, size: int) -> None:
        context = mp.get_context("spawn")
        self.answers = context.Queue()
        self.jobs = [context.Queue() for _ in range(size)]
        self.processes = [
            context.Process(target=_work, args=(rank, q, self.answers)) for rank, q in enumerate(self.jobs)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def run(self, function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
        """`function(*args)` of every rank. An exception or a hang in any of them fails the caller."""
        port = free_port()
        for rank in range(ranks):
            self.jobs[rank].put((ranks, port, function, args))
        answers = dict(self.answers.get(timeout=TIMEOUT_S) for _ in range(ranks))
        failed = [answer for ok, answer in answers.values() if not ok]
        assert not failed, "\n".join(failed)
        return [answers[rank][1] for rank in range(ranks)]


def _work(rank: int, jobs: Any, answers: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    while True:
        ranks, port, function, args = jobs.get()
        os.environ.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), MASTER_PORT=str(port))
        try:
            answers.put((rank, (True, function(*args))))
        except BaseException:
            sys.stdout.flush()
            answers.put((rank, (False, traceback.format_exc())))
