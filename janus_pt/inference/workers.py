"""Decoding in several processes, each with the model; portions go out and come back in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from janus_pt.inference.janus_model import Generation, JanusModel
from janus_pt.utils.processes import map_in_order, worker_pool

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
    with worker_pool(workers, _start, load, threads) as pool:
        generate = partial(_generate, arguments=arguments)
        for _, generations in map_in_order(pool, generate, portions, ahead=workers):
            yield generations


def _start(load: Callable[[], JanusModel], threads: int) -> None:
    global _model
    torch.set_num_threads(threads)
    _model = load()


def _generate(portion: Portion, arguments: dict[str, Any]) -> list[Generation]:
    assert _model is not None
    return _model.generate(portion, **arguments)
