"""Watching the other ranks: one that is gone or hangs ends the job with exit code 13, and is named.

A thread of every rank keeps a connection to the first rank, and says over it what the rank is doing.
The first rank judges (`board.py`): a process that is gone is known by its closed connection within
seconds, one that hangs after `run.peer_timeout`. It then reports, and tells all others to leave. The
others judge the first rank in the same way. No main thread is needed for any of this, and a
process whose Python is blocked as a whole is ended by its own timer (`dead_man.py`).
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from janus_pt.train.watch.board import FAILED_S, START, Board, Position
from janus_pt.train.watch.dead_man import DeadMansSwitch
from janus_pt.train.watch.link import Link, Message, listen, watched

EXIT_PEER_LOST = 13
BEATS = 10
"""Signs of life that a rank gives in the time after which it is taken for dead."""
LONGEST_BEAT_S = 2.0
CONNECT_S = 60.0
LEAVE_S = 15.0
"""How long a rank whose collective has failed waits to hear why."""
GIVE_UP_S = 8.0
"""How long a checkpoint that is being written may still take when a rank is lost."""
MAX_ERROR_CHARACTERS = 200
ADDRESS = "peers/address"
"""The store's key of the first rank's port, and of the word by which it knows the other ranks."""


class Heartbeat:
    """This rank's view of the others. Between `start` and `stop` a thread is at work."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._beat_s = min(LONGEST_BEAT_S, timeout_s / BEATS)
        self._position = START
        self._rank, self._ranks = int(os.environ.get("RANK", "0")), 1
        self._stopped = threading.Event()
        self._before_exit: Callable[[float], object] = lambda seconds: None
        self._links: dict[int, Link] = {}

    def start(self) -> None:
        """Begin to watch, once the process group exists; all ranks take part."""
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        if self._ranks == 1:
            return
        is_first = self._rank == 0
        self._board = Board(
            range(self._ranks) if is_first else range(1),
            self._timeout_s,
            silent_collectives=dist.get_backend() == "nccl",
            # The first rank knows more: the others wait for its word.
            failed_s=FAILED_S if is_first else 2 * FAILED_S,
            now=time.monotonic(),
        )
        self._selector = selectors.DefaultSelector()
        # `leave` and `stop` wake the thread.
        inner, self._wake = (Link(end) for end in socket.socketpair())
        self._selector.register(inner, selectors.EVENT_READ, partial(self._read, inner, self._rank))
        if is_first:
            self._open()
        else:
            self._connect()
        self._switch = DeadMansSwitch(EXIT_PEER_LOST)
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def at(self, step: int, doing: str) -> None:
        """Note what this rank is doing; costs nothing, the thread reads it at its next beat."""
        # One assignment of one tuple: the other thread never sees half of it.
        self._position = Position(self._position.number + 1, step, doing)

    def before_exit(self, action: Callable[[float], object]) -> None:
        """Before a lost rank ends this process, call `action` with the seconds that it may take."""
        self._before_exit = action

    def stop(self) -> None:
        """Watch no more, and tell the others that this rank is done: from now on it may end."""
        if not self._stopped.is_set():
            for link in list(self._links.values()):
                link.send("bye")
        self.close()

    def close(self) -> None:
        """Watch no more. To the others, this rank is gone."""
        if not self._stopped.is_set():
            self._stopped.set()
            if self._ranks > 1:
                self._wake.send("stopped")

    def leave(self, error: BaseException) -> NoReturn:
        """End this process because a collective failed, when it is known which rank that was for.

        At once: nothing that uses the process group can be relied on any more, not even its end.
        """
        message = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
        if self._ranks > 1 and not self._stopped.is_set():
            self._wake.send("failed", message)
            time.sleep(LEAVE_S)
        self._report(f"the ranks cannot reach each other [{message}]")
        os._exit(EXIT_PEER_LOST)

    def _open(self) -> None:
        """On the first rank: let the others connect."""
        listener = listen()
        listener.setblocking(False)
        self._word = secrets.token_hex(8)
        self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))
        _get_default_store().set(ADDRESS, f"{listener.getsockname()[1]} {self._word}")

    def _accept(self, listener: socket.socket) -> None:
        try:
            link = watched(listener.accept()[0])
        except OSError:
            return  # it has gone again
        self._selector.register(link, selectors.EVENT_READ, partial(self._greet, link))

    def _greet(self, link: Link) -> None:
        """The first message of a connection says whose it is."""
        messages, closed = link.receive()
        if not messages and not closed:
            return
        self._selector.unregister(link)
        match messages[0] if messages else []:
            case ["hello", self._word, int(rank)] if rank in self._board.peers:
                self._links[rank] = link
                read = partial(self._read, link, rank)
                self._selector.register(link, selectors.EVENT_READ, read)
                self._take(rank, messages[1:], closed)
            case _:
                link.close()  # a stranger

    def _connect(self) -> None:
        """On the other ranks: connect to the first one."""
        port, word = _get_default_store().get(ADDRESS).decode().split()
        host = os.environ["MASTER_ADDR"]
        link = watched(socket.create_connection((host, int(port)), CONNECT_S))
        link.send("hello", word, self._rank)
        self._links[0] = link
        self._selector.register(link, selectors.EVENT_READ, partial(self._read, link, 0))

    def _watch(self) -> None:
        """In the thread: give signs of life, read the others', and judge."""
        next_beat = 0.0
        while not self._stopped.is_set():
            now = time.monotonic()
            if now >= next_beat:
                self._beat(now)
                next_beat = now + self._beat_s
            for key, _ in self._selector.select(self._beat_s):
                key.data()
            verdict = self._board.verdict(time.monotonic())
            if verdict is not None and not self._stopped.is_set():
                self._pronounce(verdict)
        self._switch.wind_up(0)
        self._selector.close()
        for link in self._links.values():
            link.close()

    def _beat(self, now: float) -> None:
        # Later than the others' verdict, which says why.
        self._switch.wind_up(self._timeout_s + 2 * LONGEST_BEAT_S)
        position = self._position
        if self._rank == 0:
            self._board.heard(0, position, now)
        for link in self._links.values():
            link.send("at", *position)

    def _read(self, link: Link, rank: int) -> None:
        messages, closed = link.receive()
        self._take(rank, messages, closed)
        if closed:
            self._selector.unregister(link)

    def _take(self, rank: int, messages: list[Message], closed: bool) -> None:
        """Note what a rank has said, this one included (by `leave`)."""
        now = time.monotonic()
        for message in messages:
            match message:
                case ["at", int(number), int(step), str(doing)]:
                    self._board.heard(rank, Position(number, step, doing), now)
                case ["failed", str(error)]:
                    self._board.failed(error, now)
                    if 0 in self._links:
                        self._links[0].send("failed", error)
                case ["bye"]:
                    self._board.left(rank)
                case ["lost"]:
                    self._exit()
        if closed:
            self._board.closed(rank, now)

    def _pronounce(self, verdict: str) -> None:
        """Report that a rank is lost, once a job, and end it."""
        # If the first rank is lost, perhaps with its node, one rank of every node reports.
        if self._rank < 2 or os.environ.get("LOCAL_RANK") == "0":
            self._report(verdict)
        if self._rank == 0:
            for link in self._links.values():
                link.send("lost")
        self._exit()

    def _exit(self) -> NoReturn:
        """End this process, wherever its main thread hangs."""
        try:
            self._before_exit(GIVE_UP_S)
        finally:
            # Not `sys.exit`, which would end this thread only.
            os._exit(EXIT_PEER_LOST)

    def _report(self, text: str) -> None:
        origin = f"rank {self._rank}, {self._position}"
        print(
            f"error: {origin}: {text}; start again with --resume auto", file=sys.stderr, flush=True
        )


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error comes from a collective that another rank has left or not come to."""
    # Gloo raises a plain RuntimeError, and so do some paths of NCCL: only the text tells.
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
