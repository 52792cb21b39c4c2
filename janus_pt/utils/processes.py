"""Worker processes that keep order, take a bounded amount of work, and end with their parent.

`joblib.Parallel(return_as="generator")` keeps the order, too, but it takes all of its input however slowly its results
are used, loses the results before an input that raises, and leaves its processes behind when the parent is killed.
`ProcessPoolExecutor.map` takes all of its input at once before Python 3.14.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from janus_pt.utils.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def allow_open_files() -> None:
    """Let this process open as many files and connections as the system allows at most; the usual limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where the most is "unlimited", the system may refuse it: then the limit is no matter.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def writer_name() -> str:
    """A name that no other process has, on any host that shares a file system with this one."""
    return f"-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"


def worker_pool(
    workers: int, start: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """A pool of fresh processes, each of which calls `start(*arguments)` once before its first item."""
    # Not forked: a process that runs threads (torch, SentencePiece, tqdm) must not be.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(start, arguments)
    )


def map_in_order(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, `function(item)`) in the order of the items.

    Args:
        function: picklable; what it raises is raised here, in its item's turn.
        items: read in this thread, at most `ahead` items before their turn.

    Raises:
        UserError: a worker process was killed, as the system does when memory runs out.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            # Results are yielded while the workers have work: `ahead` items bound the memory.
            if len(waiting) > ahead:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        while waiting:
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory?); run again, with fewer --workers if need be"
        ) from None
    finally:
        # The caller may stop early; the pool would finish what is waiting before it lets go.
        for _, future in waiting:
            future.cancel()


def end_with_parent() -> None:
    """From now on, end this process as soon as the process that started it has ended, however it ended.

    A worker whose parent was killed would otherwise wait for work forever: it holds both ends of its queue itself.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    # Not `os.getppid`: the parent of a process made by a fork server is that server.
    parent = multiprocessing.parent_process()
    assert parent is not None, "only for processes that multiprocessing started"
    parent.join()
    # Nobody is left to clean up for, and other threads may be stuck in the queue.
    os._exit(1)


def _start_worker(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    # A terminal sends Ctrl-C to the workers as well; the parent answers it, with one message.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if start is not None:
        start(*arguments)
