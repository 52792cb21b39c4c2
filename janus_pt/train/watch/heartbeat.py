"""Watching the other ranks: one that dies or hangs ends the job in `run.peer_timeout` seconds.

A thread of every rank writes to the job's store (torch.distributed's key-value store) that the
process lives and what it is doing. A process that falls silent is noticed whatever the others are
doing; one that lives but hangs is noticed by the collective that waits for it, whose timeout is the
same. The message names the rank.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

EXIT_PEER_LOST = 13
BEATS = 10
"""Signs of life that a rank gives in the time after which it is taken for dead."""
LONGEST_BEAT_S = 2.0
MAX_ERROR_CHARACTERS = 200


class Sign(NamedTuple):
    """A rank's last sign of life: its number, the rank's step, and what the rank was doing."""

    number: str
    step: int
    doing: str

    def __str__(self) -> str:
        return f"step {self.step} ({self.doing})"


class Heartbeat:
    """This rank's view of the others. Between `start` and `stop` threads are at work."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._beat_s = min(LONGEST_BEAT_S, timeout_s / BEATS)
        self._doing = (0, "starting")
        self._ranks = 1
        self._stopped = threading.Event()
        self._store_answered = 0.0

    def start(self) -> None:
        """Begin to watch, once the process group exists."""
        self._rank = dist.get_rank()
        self._ranks = dist.get_world_size()
        # A connection of its own: the main thread's is blocked for as long as that thread waits.
        default_store: Any = _get_default_store()  # its type stub lacks `clone`
        self._store = dist.PrefixStore("peers", default_store.clone())
        self._store.set_timeout(timedelta(seconds=self._timeout_s))
        self._write_sign(0)
        self._store_answered = time.monotonic()
        if self._ranks > 1:
            for work in (self._watch, self._guard):
                threading.Thread(target=work, name="peers", daemon=True).start()

    def at(self, step: int, doing: str) -> None:
        """Note what this rank is doing; costs nothing, the thread reads it at its next beat."""
        # One assignment of one tuple: the other thread never sees half of it.
        self._doing = (step, doing)

    def stop(self) -> None:
        """Watch no more: from now on ranks may leave."""
        self._stopped.set()

    def leave(self, error: BaseException) -> NoReturn:
        """Report which rank a failed collective was waiting for, as far as can be known, and exit.

        At once: nothing that uses the process group can be relied on any more, not even its end.
        """
        self.stop()
        message = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
        self._report(f"{self._suspects()} [{message}]")
        os._exit(EXIT_PEER_LOST)

    @property
    def _own_rank(self) -> str:
        # Of the environment: `leave` may come before `start`.
        return os.environ.get("RANK", "0")

    def _report(self, text: str) -> None:
        step, doing = self._doing
        origin = f"rank {self._own_rank}, step {step} ({doing})"
        print(
            f"error: {origin}: {text}; start again with --resume auto", file=sys.stderr, flush=True
        )

    def _write_sign(self, number: int) -> None:
        step, doing = self._doing
        self._store.set(f"beat/{self._rank}", f"{number}|{step}|{doing}")

    def _read_sign(self, rank: int) -> Sign:
        number, step, doing = self._store.get(f"beat/{rank}").decode().split("|")
        return Sign(number, int(step), doing)

    def _watch(self) -> None:
        """Give signs of life, and look for the other ranks' signs.

        The first rank looks for everybody's, the others for the first one's alone: the store is
        asked by each rank for one value a beat, not for as many as there are ranks.
        """
        watched = range(1, self._ranks) if self._rank == 0 else range(1)
        heard = {rank: ("", time.monotonic()) for rank in watched}
        number = 0
        while not self._stopped.wait(self._beat_s):
            number += 1
            try:
                self._write_sign(number)
                for rank in watched:
                    self._check_sign(rank, heard)
                self._store_answered = time.monotonic()
            except Exception as error:
                # The store is in the first rank's process or its launcher's, and ends with it.
                if not self._stopped.is_set():
                    self._exit(
                        f"the job's store no longer answers, rank 0 or its node is gone ({error})",
                        reporting_rank=1,
                    )

    def _guard(self) -> None:
        """Watch `_watch`: the process that holds the store may be frozen, and `_watch` with it."""
        while not self._stopped.wait(self._beat_s):
            if time.monotonic() - self._store_answered > self._timeout_s:
                self._exit(
                    "rank 0, which holds the job's store, did not answer for "
                    f"{self._timeout_s:g} s",
                    reporting_rank=1,
                )

    def _check_sign(self, rank: int, heard: dict[int, tuple[str, float]]) -> None:
        """End the process if a rank has been silent for too long; `heard` is brought up to date."""
        # `get` would wait for a rank that has not started yet.
        if not self._store.check([f"beat/{rank}"]):
            return
        sign = self._read_sign(rank)
        last_number, last_time = heard[rank]
        # By this process's clock alone: the clocks of two nodes may be minutes apart.
        now = time.monotonic()
        if sign.number != last_number:
            heard[rank] = (sign.number, now)
        elif now - last_time > self._timeout_s:
            self._exit(
                f"rank {rank} gave no sign of life for {self._timeout_s:g} s, last at {sign}",
                reporting_rank=0,
            )

    def _exit(self, why: str, reporting_rank: int) -> None:
        """End this process, wherever its main thread hangs.

        The first rank reports, and `reporting_rank`: one line a job, not one a rank.
        """
        if self._rank in (0, reporting_rank):
            self._report(why)
        # Not `sys.exit`, which would end this thread only.
        os._exit(EXIT_PEER_LOST)

    def _suspects(self) -> str:
        """The ranks that give no more signs of life; if all do, those behind the others."""
        if self._ranks == 1:
            return "the ranks cannot reach each other"
        samples: list[list[Sign]] = []
        # In a thread: the store may never answer.
        sampling = threading.Thread(target=self._sample_twice, args=(samples,), daemon=True)
        sampling.start()
        sampling.join(10 * self._beat_s)
        if len(samples) < 2:
            return "rank 0, which holds the job's store, does not answer"
        before, now = samples
        own_rank = int(self._own_rank)
        silent = [
            f"rank {rank} is gone, last at {now[rank]}"
            for rank in range(self._ranks)
            if before[rank].number == now[rank].number and rank != own_rank
        ]
        if silent:
            return ", ".join(silent)
        behind = [
            f"rank {rank} is still at {sign}"
            for rank, sign in enumerate(now)
            if self._is_behind(sign)
        ]
        if behind:
            return ", ".join(behind)
        return "a collective failed, and all ranks give signs of life"

    def _is_behind(self, sign: Sign) -> bool:
        step, _ = self._doing
        return (sign.step, sign.doing) != self._doing and sign.step <= step

    def _sample_twice(self, samples: list[list[Sign]]) -> None:
        """Append all ranks' last signs of life, twice, with some beats between."""
        # Nothing if the store fails: then there are fewer than two samples.
        with contextlib.suppress(Exception):
            samples.append([self._read_sign(rank) for rank in range(self._ranks)])
            time.sleep(3 * self._beat_s)
            samples.append([self._read_sign(rank) for rank in range(self._ranks)])


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error comes from a collective that another rank has left or not come to."""
    # Gloo raises a plain RuntimeError, and so do some paths of NCCL: only the text tells.
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
