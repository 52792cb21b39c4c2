"""Runs a function in several real processes that talk over gloo."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

TIMEOUT_S = 180


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """Call `function(*args)` in `ranks` spawned processes and return what each returned, by rank.

    `function` must be importable. An exception or a hang in any of them fails the caller.
    """
    context = mp.get_context("spawn")
    queue = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_enter, args=(queue, rank, ranks, port, function, args)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        answers = dict(queue.get(timeout=TIMEOUT_S) for _ in range(ranks))
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    failed = [answer for ok, answer in answers.values() if not ok]
    assert not failed, "\n".join(failed)
    return [answers[rank][1] for rank in range(ranks)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _enter(queue: Any, rank: int, ranks: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
    )
    try:
        answer = (rank, (True, function(*args)))
    except BaseException:
        answer = (rank, (False, traceback.format_exc()))
    queue.put(answer)
