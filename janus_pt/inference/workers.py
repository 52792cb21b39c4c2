"""Decoding in several processes, each with the model; portions go out and come back in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from janus_pt.inference.janus_model import Generation, JanusModel

Portion = list[list[int]]
_model: JanusModel | None = None
"""The model of a worker process."""


def in_processes(
    load: Callable[[], JanusModel],
    workers: int,
    arguments: dict[str, Any],
    portions: Iterable[Portion],
) -> Iterator[list[Generation]]:
    """Yield what `generate(portion, **arguments)` makes of each portion, in order.

    `load` runs once in each process. One portion more than there are processes is read ahead, whatever their number.
    The machine's cores are shared out among the processes.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Not forked: a process that has used torch's threads must not be.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (load, threads))
    waiting: deque[Future[list[Generation]]] = deque()
    try:
        for portion in portions:
            waiting.append(pool.submit(_generate, portion, arguments))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(load: Callable[[], JanusModel], threads: int) -> None:
    global _model
    torch.set_num_threads(threads)
    _model = load()


def _generate(portion: Portion, arguments: dict[str, Any]) -> list[Generation]:
    assert _model is not None
    return _model.generate(portion, **arguments)
