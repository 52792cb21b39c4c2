"""Watching the other ranks: one that dies or hangs ends the job in `run.peer_timeout` seconds, and is named.

A thread of every rank tells the job's store (torch.distributed's key-value store) that the process lives and what it
is at. A process that falls silent is noticed whatever the others are doing; one that lives but hangs is noticed by
the collective that waits for it, whose timeout is the same.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

EXIT_PEER_LOST = 13
BEATS = 10
"""A rank gives so many signs of life in the time after which it is taken for dead."""
LONGEST_BEAT_S = 2.0


class Heartbeat:
    """This rank's view of the others. Between `start` and the end of the process a thread is at work."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout = timeout_s
        self._beat = min(LONGEST_BEAT_S, timeout_s / BEATS)
        self._doing = (0, "starting")
        self._ranks = 1
        self._left = threading.Event()
        self._answered = 0.0

    def start(self) -> None:
        """Begin to watch, once the process group is there."""
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        default: Any = _get_default_store()
        self._store = dist.PrefixStore("peers", default.clone())  # a connection of the thread's own
        self._store.set_timeout(timedelta(seconds=self._timeout))
        self._tell(0)
        self._answered = time.monotonic()
        if self._ranks > 1:
            for work in (self._watch, self._guard):
                threading.Thread(target=work, name="peers", daemon=True).start()

    def at(self, step: int, doing: str) -> None:
        """Note what this rank is at; costs nothing."""
        self._doing = (step, doing)

    def stop(self) -> None:
        """Watch no more: from now on ranks leave."""
        self._left.set()

    def leave(self, error: BaseException) -> NoReturn:
        """Tell which rank a failed collective was waiting for, as far as can be known, and end this process.

        At once: nothing that takes part in the group can be relied on any more, its orderly end neither.
        """
        self.stop()
        told = " ".join(str(error).split())[:200]
        self._say(f"{self._suspects()} [{told}]")
        os._exit(EXIT_PEER_LOST)

    @property
    def _own(self) -> str:
        return os.environ.get("RANK", "0")

    def _say(self, text: str) -> None:
        step, doing = self._doing
        place = f"rank {self._own}, step {step} ({doing})"
        print(
            f"error: {place}: {text}; start again with --resume auto", file=sys.stderr, flush=True
        )

    def _tell(self, number: int) -> None:
        step, doing = self._doing
        self._store.set(f"beat/{self._rank}", f"{number}|{step}|{doing}")

    def _last_of(self, rank: int) -> tuple[str, int, str]:
        """Number of a rank's last sign of life, its step, and what it was doing."""
        number, step, doing = self._store.get(f"beat/{rank}").decode().split("|")
        return number, int(step), doing

    def _watch(self) -> None:
        """Give signs of life. The first rank looks for everybody's, the others for the first one's."""
        watched = range(1, self._ranks) if self._rank == 0 else range(1)
        heard = {rank: ("", time.monotonic()) for rank in watched}
        number = 0
        while not self._left.wait(self._beat):
            number += 1
            try:
                self._tell(number)
                for rank in watched:
                    self._look_at(rank, heard)
                self._answered = time.monotonic()
            except Exception as error:  # the store is in the first rank's process or its launcher's
                if not self._left.is_set():
                    self._leave(
                        f"the job's store no longer answers, rank 0 or its node is gone ({error})",
                        1,
                    )

    def _guard(self) -> None:
        """The store may be frozen with the process that holds it, and `_watch` with it."""
        while not self._left.wait(self._beat):
            if time.monotonic() - self._answered > self._timeout:
                self._leave(
                    f"rank 0, which holds the job's store, did not answer for {self._timeout:g} s",
                    1,
                )

    def _look_at(self, rank: int, heard: dict[int, tuple[str, float]]) -> None:
        if not self._store.check([f"beat/{rank}"]):
            return
        number, step, doing = self._last_of(rank)
        if number != heard[rank][0]:
            heard[rank] = number, time.monotonic()
        elif time.monotonic() - heard[rank][1] > self._timeout:
            self._leave(
                f"rank {rank} gave no sign of life for {self._timeout:g} s, last at step {step} ({doing})",
                0,
            )

    def _leave(self, why: str, teller: int) -> None:
        """End this process, wherever its main thread hangs."""
        if self._rank in (0, teller):
            self._say(why)
        os._exit(EXIT_PEER_LOST)

    def _suspects(self) -> str:
        """The ranks that give no more signs of life; if all do, those that are behind the others."""
        if self._ranks == 1:
            return "the ranks cannot reach each other"
        seen: list[list[tuple[str, int, str]]] = []
        asking = threading.Thread(
            target=self._ask, args=(seen,), daemon=True
        )  # the store may never answer
        asking.start()
        asking.join(10 * self._beat)
        if len(seen) < 2:
            return "rank 0, which holds the job's store, does not answer"
        (before, now), mine = seen, int(self._own)
        silent = [
            rank for rank in range(self._ranks) if before[rank][0] == now[rank][0] and rank != mine
        ]
        if silent:
            return ", ".join(
                f"rank {rank} is gone, last at step {now[rank][1]} ({now[rank][2]})"
                for rank in silent
            )
        behind = [
            r
            for r in range(self._ranks)
            if now[r][1:] != self._doing and now[r][1] <= self._doing[0]
        ]
        if behind:
            return ", ".join(
                f"rank {rank} is still at step {now[rank][1]} ({now[rank][2]})" for rank in behind
            )
        return "a collective failed, and all ranks give signs of life"

    def _ask(self, seen: list[list[tuple[str, int, str]]]) -> None:
        """All ranks' last signs of life, twice, with some beats between."""
        with contextlib.suppress(Exception):
            seen.append([self._last_of(rank) for rank in range(self._ranks)])
            time.sleep(3 * self._beat)
            seen.append([self._last_of(rank) for rank in range(self._ranks)])


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error comes from a collective that another rank has left or not come to."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
