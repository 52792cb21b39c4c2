"""Decoding in several processes, each with the model; portions go out and come back in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized

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
    however many portions there are. The machine's cores are shared out among the processes, and so are
    its GPUs.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    started = get_context("spawn").Value("i", 0)
    with worker_pool(workers, _start, load, options, batching, threads, started) as pool:
        for _, generations in map_in_order(pool, _decode_portion, portions, ahead=workers):
            yield generations


def _start(
    load: Callable[[], JanusModel],
    options: DecodingOptions,
    batching: Batching,
    threads: int,
    started: Synchronized[int],
) -> None:
    # Options come once with the process, not with each portion.
    global _decode
    # By default each process would start a thread for every core of the machine.
    torch.set_num_threads(threads)
    use_gpu_of_worker(started)
    model = load()

    def decode(portion: Portion) -> list[Generation]:
        return model.generate_from_ids(portion, options, batching)

    _decode = decode


def use_gpu_of_worker(started: Synchronized[int]) -> int | None:
    """Make the next GPU in turn this process's own; its number, None without GPUs.

    Args:
        started: counts the processes that have one.
    """
    with started.get_lock():
        number = started.value
        started.value += 1
    if not torch.cuda.is_available():
        return None
    # Else every process would load the model onto the first one.
    gpu = number % torch.cuda.device_count()
    torch.cuda.set_device(gpu)
    return gpu


def _decode_portion(portion: Portion) -> list[Generation]:
    assert _decode is not None
    return _decode(portion)
