"""Measure seconds, speeds and memory; print the numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from janus_pt.utils.tables import format_table

WARM_UP = 2
"""Rounds that do not count: caches, allocators and kernels are made in them."""
MIB = 2**20


class DecodedOutput(Protocol):
    """What is timed of an output: `inference.Generation`, whose imports would count as memory."""

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens that were written."""


class Rate(NamedTuple):
    """How fast a way of decoding is."""

    sentences_per_s: float
    tokens_per_s: float


def available_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now(device: torch.device) -> float:
    """The time once the device has done all its work."""
    # Kernels are only queued when a call returns: without this the queueing would be timed.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(jobs: Sequence[Callable[[], Any]], repeats: int, device: torch.device) -> list[float]:
    """The median seconds of each job over `repeats` rounds, in which the jobs take turns.

    A busy moment of the machine then hits all of them.
    """
    seconds: list[list[float]] = [[] for _ in jobs]
    for round_number in range(WARM_UP + repeats):
        for job, seconds_of_job in zip(jobs, seconds, strict=True):
            start = now(device)
            job()
            if round_number >= WARM_UP:
                seconds_of_job.append(now(device) - start)
    return [statistics.median(seconds_of_job) for seconds_of_job in seconds]


def median_times(jobs: Sequence[Callable[[], Any]], repeats: int) -> list[tuple[float, Any]]:
    """The median seconds of each job over `repeats` rounds by turns, and what the job returned last.

    One round more warms up, and does not count.
    """
    seconds: list[list[float]] = [[] for _ in jobs]
    results: list[Any] = [None] * len(jobs)
    for round_number in range(repeats + 1):
        for index, job in enumerate(jobs):
            start = time.perf_counter()
            results[index] = job()
            if round_number:
                seconds[index].append(time.perf_counter() - start)
    return list(zip(map(statistics.median, seconds), results, strict=True))


def time_ways(
    ways: Sequence[Callable[..., Sequence[DecodedOutput]]],
    texts: Sequence[str],
    batch_sizes: Sequence[int],
    repeats: int,
) -> list[dict[int, Rate]]:
    """The rates of each way of decoding, by batch size.

    Every batch counts with its median time over `repeats` rounds, in which the ways take turns.

    Args:
        ways: `JanusModel.generate` with mode and options.
        texts: in order of length, so that the sentences of a batch are about equally long.
    """
    rates: list[dict[int, Rate]] = [{} for _ in ways]
    for size in batch_sizes:
        seconds = [0.0] * len(ways)
        tokens = [0] * len(ways)
        for start in range(0, len(texts), size):
            batch = texts[start : start + size]
            jobs = [partial(way, batch, batch_size=size) for way in ways]
            for index, (median, outputs) in enumerate(median_times(jobs, repeats)):
                seconds[index] += median
                tokens[index] += sum(len(output.tokens) for output in outputs)
        for index, rates_of_way in enumerate(rates):
            rates_of_way[size] = Rate(
                sentences_per_s=len(texts) / seconds[index],
                tokens_per_s=tokens[index] / seconds[index],
            )
    return rates


def peak_memory_mb(job: Callable[..., Any], *arguments: Any) -> float:
    """Peak memory of `job(*arguments)` in a process of its own, in MiB.

    On a GPU it is what torch has allocated there, else the resident memory of the whole process,
    torch itself included.

    Args:
        job: a module's function, which the process can import.
    """
    # Spawned: a forked process would start with all memory that this one holds.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_run_and_read_peak, job, *arguments).result()


def _run_and_read_peak(job: Callable[..., Any], *arguments: Any) -> float:
    job(*arguments)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    # VmHWM, not ru_maxrss: the latter also counts what the process was before it was spawned.
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            kib = int(value.split()[0])
            return kib / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is only known on Linux")


def print_numbers(numbers: Mapping[str, float]) -> None:
    """Print names and numbers in two columns."""
    rows = [(name, f"{value:,.4g}") for name, value in numbers.items()]
    print(format_table(rows, align="lr"))
