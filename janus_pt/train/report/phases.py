"""Where the time of a step goes, without a wait for the device in it.

On a GPU the host only queues work, so its own clock says nothing: events are put into the stream, and
read when a report has waited for the device anyway. On a CPU the clock is right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch


class StepTimes(NamedTuple):
    """Mean seconds of a step, by what they were spent on."""

    data: float
    """Waiting for the loader."""
    before_exchange: float
    """Forward and backward passes up to the last backward pass: nobody else is waited for, but by
    tensor-parallel ranks, and with ZeRO-3 for weights."""
    last_backward: float
    """The last backward pass, and what of the exchange of gradients overlaps with it or follows it."""
    update: float
    """The rest of the exchange, the gradient's norm, and the update."""
    checkpoint: float
    """Copying the state, and waiting until the one before is written."""

    def metrics(self) -> dict[str, float]:
        """By the names of `metrics.jsonl`."""
        return {
            "time/data": self.data,
            "time/forward_backward": self.before_exchange + self.last_backward,
            "time/update": self.update,
            "time/checkpoint": self.checkpoint,
        }


class Moment(Protocol):
    """A moment of the device's or the host's time."""

    def seconds_to(self, end: Moment) -> float:
        """The time from this moment to a later one."""


class HostMoment:
    """Now, by the host's clock."""

    def __init__(self) -> None:
        self.time = time.perf_counter()

    def seconds_to(self, end: Moment) -> float:
        """See `Moment`."""
        assert isinstance(end, HostMoment)
        return end.time - self.time


class StreamMoment:
    """When the device comes to this point of its queue."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def seconds_to(self, end: Moment) -> float:
        """See `Moment`. The device has passed both, as it has once a later loss has been read."""
        assert isinstance(end, StreamMoment)
        return float(self.event.elapsed_time(end.event)) / 1000


class Phases:
    """Collects the moments at which the phases of steps begin and end. Names are `StepTimes`'s."""

    def __init__(self, device: torch.device) -> None:
        self._moment = StreamMoment if device.type == "cuda" else HostMoment
        self._spans: list[tuple[str, Moment, Moment]] = []
        self._current: tuple[str, Moment] | None = None
        self._steps = 0

    @contextmanager
    def on_host(self, name: str) -> Iterator[None]:
        """A block in which the host works or waits, for the phase `name`."""
        start = HostMoment()
        yield
        self._spans.append((name, start, HostMoment()))

    def enter(self, name: str) -> None:
        """From here on the device works for the phase `name`, and no longer for the one before."""
        now = self._moment()
        self._end_current(now)
        self._current = (name, now)

    def end_step(self) -> None:
        """The device's work for a step ends here."""
        self._end_current(self._moment())
        self._steps += 1

    def take(self) -> StepTimes:
        """Mean times of the steps since the last call. The device must be done with them."""
        totals = dict.fromkeys(StepTimes._fields, 0.0)
        for name, start, end in self._spans:
            totals[name] += start.seconds_to(end)
        steps = max(self._steps, 1)
        self.drop()
        return StepTimes(**{name: total / steps for name, total in totals.items()})

    def drop(self) -> None:
        """Begin anew."""
        self._spans, self._current, self._steps = [], None, 0

    def _end_current(self, now: Moment) -> None:
        if self._current is not None:
            name, start = self._current
            self._spans.append((name, start, now))
        self._current = None
