"""Seconds and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

WARM_UP = 2
MIB = 2**20


def now(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(jobs: Sequence[Callable[[], Any]], repeats: int, device: torch.device) -> list[float]:
    """The median seconds of each job over repeats that take turns, so that a busy moment hits all alike."""
    seconds: list[list[float]] = [[] for _ in jobs]
    for repeat in range(WARM_UP + repeats):
        for job, spent in zip(jobs, seconds, strict=True):
            start = now(device)
            job()
            if repeat >= WARM_UP:
                spent.append(now(device) - start)
    return [statistics.median(spent) for spent in seconds]


def peak_memory_mb(job: Callable[..., Any], *arguments: Any) -> float:
    """Peak memory of `job(*arguments)`, a module's function, in a process of its own: on a GPU what torch has
    allocated there, else the whole process' resident memory, torch itself included."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_peak, job, *arguments).result()


def _peak(job: Callable[..., Any], *arguments: Any) -> float:
    job(*arguments)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024
