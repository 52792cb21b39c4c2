"""One rank of a job of many, alone: the others are a store that answers, and NCCL's stand-in.

Its groups, engine and transfers are those of a rank of the whole job. Groups on gloo, which would
connect to the other ranks, get torch's backend "fake".
"""

from __future__ import annotations

import os
from collections import Counter
from datetime import timedelta
from typing import Any

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch.testing._internal.distributed import fake_pg as _registers_the_backend_fake  # noqa: F401

LOCAL_RANKS = 8
NCCL_ID_BYTES = 128


class AgreeingStore(dist.Store):
    """A store in which all ranks have written already: what nobody wrote is an NCCL id of zeros."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self._ranks = ranks
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._values[key] = value if isinstance(value, bytes) else str(value).encode()

    def get(self, key: str) -> bytes:
        """A value, or what stands for one of another rank."""
        return self._values.get(key, bytes(NCCL_ID_BYTES))

    def add(self, key: str, amount: int) -> int:
        """Count a rank: with it all have been counted, so that no barrier waits."""
        self._values[key] = str(int(self._values.get(key, b"0")) + amount).encode()
        return self._ranks

    def compare_set(self, key: str, expected: Any, desired: Any) -> Any:
        """Set a value."""
        self.set(key, desired)
        return desired

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """All keys are there."""

    def check(self, keys: list[str]) -> bool:
        """Whether this rank wrote the keys."""
        return all(key in self._values for key in keys)

    def set_timeout(self, timeout: timedelta) -> None:
        """Nothing waits."""

    def delete_key(self, key: str) -> bool:
        """Keep everything."""
        return True

    def num_keys(self) -> int:
        """How many keys this rank wrote."""
        return len(self._values)


def become(rank: int, ranks: int) -> Counter[str]:
    """Make this process rank `rank` of `ranks`, before its groups are made.

    Returns the groups by their backend, which grow as they are made.
    """
    os.environ.update(
        WORLD_SIZE=str(ranks),
        RANK=str(rank),
        LOCAL_RANK=str(rank % LOCAL_RANKS),
        LOCAL_WORLD_SIZE=str(min(ranks, LOCAL_RANKS)),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29876",
    )
    store = AgreeingStore(ranks)

    def rendezvous(*_: Any, **__: Any) -> Any:
        return iter([(store, rank, ranks)])

    made: Counter[str] = Counter()
    new_group = c10d.new_group

    def new_group_alone(
        ranks: Any = None, *arguments: Any, backend: Any = None, **options: Any
    ) -> Any:
        made[backend or "nccl"] += 1
        used = "fake" if backend == "gloo" else backend
        return new_group(ranks, *arguments, backend=used, **options)

    dist.rendezvous = c10d.rendezvous = rendezvous
    dist.new_group = c10d.new_group = new_group_alone  # type: ignore[assignment]
    return made
