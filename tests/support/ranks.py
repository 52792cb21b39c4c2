"""Real processes that talk over gloo, forked for each job from one that has imported everything: that is paid once."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import secrets
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.multiprocessing as mp

from janus_pt.utils.processes import end_with_parent

TIMEOUT_S = 600
PRELOADED = [
    # First: it imports megatron-core and DeepSpeed as a training process does.
    "janus_pt.parallel.light_imports",
    "janus_pt.train.loop",
    "janus_pt.train.run",
    "janus_pt.commands.evaluate",
    "janus_pt.commands.generate",
    "janus_pt.commands.prep",
    "janus_pt.convert.huggingface",
]


class Ranks:
    """One process, started when it is first needed; `run` calls a function in forks of it as ranks.

    Each job has processes of its own: the threads of gloo's groups, which poll, and the counters that
    DeepSpeed keeps through the life of a process end with the job.
    """

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self.answers = context.Queue()
        self.jobs, theirs = context.Pipe()
        self.server = context.Process(target=_fork_ranks, args=(theirs, self.answers))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """End the process and its forks."""
        if self.server.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.join()

    def run(self, function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
        """What `function(*args)`, which must be importable, returns on every rank.

        An exception or a hang in any of them fails the caller.
        """
        if self.server.pid is None:
            self.server.start()
            # It is in a process group of its own from here on, and `kill` may count on that.
            self.jobs.recv()
        self.jobs.send((ranks, free_port(), function, args))
        pickled = dict(self.answers.get(timeout=TIMEOUT_S) for _ in range(ranks))
        answers = {rank: pickle.loads(answer) for rank, answer in pickled.items()}
        failed = [answer for ok, answer in answers.values() if not ok]
        assert not failed, "\n".join(failed)
        return [answers[rank][1] for rank in range(ranks)]


_shared: list[Ranks] = []


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """`Ranks.run` in forks of a process that all tests share; a new one after a failure."""
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


def _fork_ranks(jobs: Connection, answers: Any) -> None:
    """The process that is forked: it starts no thread, since a fork would lack it."""
    os.setpgid(0, 0)
    # Nobody waits for the ranks: the system clears them away.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    for module in PRELOADED:
        importlib.import_module(module)
    jobs.send("ready")
    while True:
        try:
            job = jobs.recv()
        except EOFError:  # the tests have ended, however they ended
            return
        for rank in range(job[0]):
            if os.fork() == 0:
                _be_rank(rank, job, answers)


def _be_rank(rank: int, job: tuple[int, int, Callable[..., Any], Any], answers: Any) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_with_parent()
    ranks, port, function, args = job
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.manual_seed(0)  # all ranks start from the same state
    try:
        # By value: torch would hand over tensors as memory that ends with this process.
        answer = pickle.dumps((True, function(*args)))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    answers.put((rank, answer))
    answers.close()
    answers.join_thread()
    sys.stdout.flush()
    # Not `sys.exit`: the forks share what the first process would clean up.
    os._exit(0)
