"""What is known of the ranks, and what follows from it: which one is lost, and when that is certain.

| what is seen of a rank | how long | what it means |
|---|---|---|
| its connection is closed, and it has not said that it leaves | `GONE_S` | the process is gone |
| the same, and a collective has failed somewhere | at once | the same |
| its connection is open, but it sends no signs | `run.peer_timeout` | it is frozen, or its Python is |
| it sends signs, but all ranks stand still, and it is behind others | `run.peer_timeout` | it hangs |
| all ranks stand still in the same step | `run.peer_timeout` | a collective or a device hangs |

The last one counts only where collectives never fail by themselves (`silent_collectives`, NCCL).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

GONE_S = 5.0
"""Seconds between a closed connection and the verdict: ranks that end with a message of their own end at
slightly different times, and theirs must be printed."""
FAILED_S = 3.0
"""Seconds that a failed collective is given to be explained by another rank's end."""
SILENT_S = 7.0
"""A rank without a sign for so long is suspected when a collective has failed; signs come every 2 s."""
STEP = "training"
"""The work that no rank does for long: a step."""


class Position(NamedTuple):
    """Where a rank is. All ranks go through the same positions, so `number` puts them in order."""

    number: int
    step: int
    doing: str

    def __str__(self) -> str:
        return f"step {self.step} ({self.doing})"


START = Position(0, 0, "starting")


@dataclass
class Peer:
    """What is known of one rank; times are seconds of this process's clock."""

    moved: float
    """When it came to its position."""
    heard: float
    """When its last sign came."""
    position: Position = START
    closed: float | None = None
    """When its connection was closed."""
    left: bool = False
    """It has said that it leaves."""


class Board:
    """The ranks' signs as this process has them.

    Args:
        ranks: those that are watched.
        timeout_s: `run.peer_timeout`.
        silent_collectives: a collective that waits for ever raises nothing.
        failed_s: seconds that a failed collective is given to be explained by another rank's end.
        now: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        ranks: Iterable[int],
        timeout_s: float,
        silent_collectives: bool,
        failed_s: float,
        now: float,
    ) -> None:
        self.peers = {rank: Peer(moved=now, heard=now) for rank in ranks}
        self._timeout_s = timeout_s
        self._silent_collectives = silent_collectives
        self._failed_s = failed_s
        self._failure = ""
        self._failed_at = 0.0

    def heard(self, rank: int, position: Position, now: float) -> None:
        """Note a sign of life."""
        peer = self.peers[rank]
        peer.heard = now
        if position != peer.position:
            peer.position, peer.moved = position, now

    def closed(self, rank: int, now: float) -> None:
        """Note that the rank's connection is closed."""
        peer = self.peers[rank]
        if peer.closed is None:
            peer.closed = now

    def left(self, rank: int) -> None:
        """Note that the rank is done and may end."""
        self.peers[rank].left = True

    def failed(self, message: str, now: float) -> None:
        """Note that a collective has failed, on whatever rank."""
        if not self._failure:
            self._failure, self._failed_at = message, now

    def verdict(self, now: float) -> str | None:
        """Why the job must end, as soon as that is certain."""
        staying = {rank: peer for rank, peer in self.peers.items() if not peer.left}
        reasons = self._gone(staying, now) or self._frozen(staying, self._timeout_s, now)
        if not reasons:
            reasons = self._standing_still(staying, now)
        if not reasons and self._failure and now - self._failed_at > self._failed_s:
            reasons = self._frozen(staying, min(SILENT_S, self._timeout_s), now)
            reasons = reasons or behind(staying)
            reasons = reasons or ["a collective failed, and all ranks give signs of life"]
        if not reasons:
            return None
        return ", ".join(reasons) + (f" [{self._failure}]" if self._failure else "")

    def _gone(self, peers: dict[int, Peer], now: float) -> list[str]:
        wait_s = 0.0 if self._failure else GONE_S
        return [
            f"rank {rank} is gone, last at {peer.position}"
            for rank, peer in peers.items()
            if peer.closed is not None and now - peer.closed >= wait_s
        ]

    def _frozen(self, peers: dict[int, Peer], after_s: float, now: float) -> list[str]:
        return [
            f"rank {rank} gave no sign of life for {now - peer.heard:.0f} s, last at {peer.position}"
            for rank, peer in peers.items()
            if now - peer.heard > after_s
        ]

    def _standing_still(self, peers: dict[int, Peer], now: float) -> list[str]:
        if len(peers) < 2 or any(now - peer.moved <= self._timeout_s for peer in peers.values()):
            return []
        late = behind(peers)
        if late or not self._silent_collectives:
            return late
        position = next(iter(peers.values())).position
        if position.doing != STEP:
            return []
        return [f"no rank came past {position} for {self._timeout_s:g} s: a device hangs"]


def behind(peers: dict[int, Peer]) -> list[str]:
    """The ranks that are not as far as others, if any are."""
    furthest = max((peer.position for peer in peers.values()), default=START)
    return [
        f"rank {rank} is still at {peer.position}"
        for rank, peer in peers.items()
        if peer.position.number < furthest.number
    ]
