"""Worker processes that keep order, take bounded work, and end with their parent however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from janus_pt.utils.errors import UserError

Given = TypeVar("Given")
Made = TypeVar("Made")


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_pool(
    workers: int, start: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """A pool of fresh processes (no fork: threads may run here) that call `start(*arguments)` once each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(start, arguments)
    )


def in_order(
    pool: ProcessPoolExecutor, function: Callable[[Given], Made], items: Iterable[Given], ahead: int
) -> Iterator[tuple[Given, Made]]:
    """Yield (item, `function(item)`) in the items' order, at most `ahead` items being taken before their turn.

    Raises:
        UserError: a worker process was killed, as the system does when memory runs out.
    """
    waiting: deque[tuple[Given, Future[Made]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory?); run again, with fewer --workers if need be"
        ) from None
    finally:
        for _, future in waiting:
            future.cancel()


def _begin(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work forever: it holds both ends of the queue."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
