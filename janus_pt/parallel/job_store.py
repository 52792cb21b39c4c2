"""Waiting for what ranks do on the host, over the job's key-value store.

NCCL gives up on a rank that keeps the others waiting, and a disk may keep it for longer than any step
takes. The store waits as long as need be: a rank that is lost meanwhile is noticed by the heartbeat.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

HOST_WORK_S = 3600.0
"""The longest that ranks wait for a disk: a conversion of a large checkpoint takes minutes."""
FIRST_POLL_S, LONGEST_POLL_S = 0.001, 0.25
PARTING_S = 60.0
"""How long the first rank waits for others that may have been lost since they met for the last time."""

Value = TypeVar("Value")


class JobStore:
    """This process's own connection to the store in which the ranks have met.

    Its own, since one that is asked for something that is not there yet is blocked for everybody
    else, NCCL's threads among them.
    """

    def __init__(self, default_store: Any) -> None:  # `dist.Store`, whose type stub lacks `clone`
        self.parent = default_store
        self.store = dist.PrefixStore("host", default_store.clone())
        self._meetings = 0

    def next_key(self) -> str:
        """A key that no earlier meeting had: all ranks count them in the same order."""
        self._meetings += 1
        return f"meeting/{self._meetings}"

    def put(self, key: str, value: object) -> None:
        """Set a key to a value that JSON has."""
        # Not pickled: whoever reaches the store could have its readers run anything.
        self.store.set(key, json.dumps(value))

    def wait(self, key: str, seconds: float = HOST_WORK_S) -> bytes:
        """The value of a key, once another rank has set it.

        Raises:
            dist.DistStoreError: nobody has for so long, or the store is gone.
        """
        deadline = time.monotonic() + seconds
        pause = FIRST_POLL_S
        # By asking again and again: threads share this connection.
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                raise dist.DistStoreError(
                    f"no rank has finished what {seconds:g} s were waited for"
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_S)
        return self.store.get(key)


_current: list[JobStore] = []
"""The connection, if there is one: of the process group that is initialized, not of an earlier one."""


def job_store(timeout_s: float = 600.0) -> JobStore:
    """This process's connection, made when it is first asked for.

    Args:
        timeout_s: the longest that a single request may take.
    """
    default_store = _get_default_store()
    if not _current or _current[0].parent is not default_store:
        _current[:] = [JobStore(default_store)]
        _current[0].store.set_timeout(timedelta(seconds=timeout_s))
    return _current[0]


def from_first_rank(value: Value) -> Value:
    """The first rank's `value`, as JSON has it, on every rank. All ranks take part.

    The first rank may come late, because of a disk.
    """
    if dist.get_world_size() == 1:
        return value
    store = job_store()
    key = store.next_key()
    if dist.get_rank() == 0:
        store.put(key, value)
        return value
    result: Value = json.loads(store.wait(key))
    return result


def from_all_ranks(value: Value) -> list[Value]:
    """Every rank's `value`, as JSON has it, on every rank; ranks may come late."""
    ranks = dist.get_world_size()
    if ranks == 1:
        return [value]
    store = job_store()
    key = store.next_key()
    store.put(f"{key}/{dist.get_rank()}", value)
    values: list[Value] = []
    if dist.get_rank() == 0:
        values = [json.loads(store.wait(f"{key}/{rank}")) for rank in range(ranks)]
    return from_first_rank(values)


def meet() -> None:
    """Wait until all ranks are here; as `dist.barrier`, but they may come late."""
    from_all_ranks(None)


def part() -> None:
    """`meet`, and nobody uses the store after it.

    The first rank's process often is the store. If it ended while another rank still asked whether all had
    met, that rank would take a finished job for a failed one.
    """
    meet()
    ranks = dist.get_world_size()
    if ranks == 1:
        return
    store = job_store()
    key = store.next_key()
    if dist.get_rank() > 0:
        # Nothing is answered to this.
        store.put(f"{key}/{dist.get_rank()}", None)
        return
    with suppress(dist.DistStoreError):
        for rank in range(1, ranks):
            store.wait(f"{key}/{rank}", PARTING_S)
