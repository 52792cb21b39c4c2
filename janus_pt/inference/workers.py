"""Decoding in several processes, each with the model; portions go out and come back in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import torch

from janus_pt.generate.hypotheses import DecodingOptions
from janus_pt.inference.batching import Batching
from janus_pt.inference.generation import Generation
from janus_pt.inference.janus_model import JanusModel
from janus_pt.utils.processes import map_in_order, worker_pool

Portion = list[list[int]]
_decode: Callable[[Portion], list[Generation]] | None = None
"""Decodes a portion with the model of this worker process."""


def decode_in_processes(
    portions: Iterable[Portion],
    load: Callable[[], JanusModel],
    options: DecodingOptions,
    batching: Batching,
    workers: int,
) -> Iterator[list[Generation]]:
    """Yield the outputs for each portion, in order.

    `load` runs once in each process. One portion more than there are processes is read ahead,
    however many portions there are. The machine's cores are shared out among the processes.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    with worker_pool(workers, _start, load, options, batching, threads) as pool:
        for _, generations in map_in_order(pool, _decode_portion, portions, ahead=workers):
            yield generations


def _start(
    load: Callable[[], JanusModel], options: DecodingOptions, batching: Batching, threads: int
) -> None:
    # Options come once with the process, not with each portion.
    global _decode
    # By default each process would start a thread for every core of the machine.
    torch.set_num_threads(threads)
    model = load()

    def decode(portion: Portion) -> list[Generation]:
        return model.generate_from_ids(portion, options, batching)

    _decode = decode


def _decode_portion(portion: Portion) -> list[Generation]:
    assert _decode is not None
    return _decode(portion)
