"""Requests to stop: by a signal, a file, or the clock. The run saves at the next step and leaves.

| request | exit code |
|---|---|
| SIGINT, SIGTERM, SIGUSR1 | 130, 143, 138 (128 + signal) |
| the file `stop` in the run folder | 10 |
| `run.max_minutes`, or Slurm's end of the job | 11 |
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from janus_pt.config.run_schema import RunConfig
from janus_pt.utils.errors import warn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SIGNAL_BASE = 128
"""Exit codes of signals begin here, as in a shell."""
STOP_FILE, EXIT_STOP_FILE, EXIT_TIME_LIMIT = "stop", 10, 11
FORWARDED_S = 3.0
"""A launcher forwards to its ranks what a terminal or Slurm has sent them already; a signal that
comes later than this is a second request."""
SLURM_MARGIN_S = 300.0
"""Seconds before Slurm's end of the job at which a run stops."""


class StopRequests:
    """Requests to stop, and the ranks' agreement on the step after which they do.

    A context: signals are handled while it is open. A second signal ends the process at once; what
    is being written then does no harm, since nothing unfinished bears a name that counts.
    """

    def __init__(self, run: RunConfig) -> None:
        self._file = Path(run.output_dir) / STOP_FILE
        self._deadline = deadline(run.max_minutes)
        self._is_first = dist.get_rank() == 0
        self._code = 0
        self._signal_time = 0.0
        # On the host, so that no step waits for the device. All ranks take part in making a group.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=run.peer_timeout))
        self._agreed = torch.zeros(1, dtype=torch.int32)
        self._exchange: dist.Work | None = None

    def __enter__(self) -> StopRequests:
        self._previous_handlers = {
            number: signal.signal(number, self._on_signal) for number in SIGNALS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        # After an error no rank can count on the others.
        if kind is None and self._exchange is not None:
            self._exchange.wait()

    def agreed(self) -> int:
        """After a step: the exit code to leave with, the same on all ranks, or 0 to go on.

        Answers requests from before the last step: each call begins an exchange, and the next call
        takes its result, so that no step waits for it. All ranks take part.
        """
        if self._exchange is not None:
            self._exchange.wait()
        code = int(self._agreed)
        self._agreed = torch.tensor([self._own_request()], dtype=torch.int32)
        # The maximum: a signal (128 and more) wins over file and clock, and anything over 0.
        self._exchange = dist.all_reduce(
            self._agreed, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        # Obeyed, hence removed: it must not stop the job that goes on, too.
        if code == EXIT_STOP_FILE and self._is_first:
            self._file.unlink(missing_ok=True)
        return code

    def _own_request(self) -> int:
        """This rank's request; the first rank looks at the file and the clock for all."""
        if self._code or not self._is_first:
            return self._code
        if time.time() > self._deadline:
            return EXIT_TIME_LIMIT
        return EXIT_STOP_FILE if self._file.exists() else 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; obey a second one, which is not merely forwarded, at once."""
        if self._code and time.monotonic() - self._signal_time > FORWARDED_S:
            # By the signal itself, so that the parent sees how the process ended.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self._code:
            self._code = SIGNAL_BASE + number
            self._signal_time = time.monotonic()
            warn(
                f"{signal.Signals(number).name}: saving after the next step; once more to leave at "
                "once"
            )


def deadline(max_minutes: float | None) -> float:
    """The time at which a job that starts now must stop, in seconds since 1970; or infinity."""
    ends = []
    if max_minutes is not None:
        ends.append(time.time() + 60 * max_minutes)
    if "SLURM_JOB_END_TIME" in os.environ:
        ends.append(float(os.environ["SLURM_JOB_END_TIME"]) - SLURM_MARGIN_S)
    return min(ends, default=float("inf"))


def describe_stop(code: int) -> str:
    """The kind of request that ends a run with this exit code."""
    if code > SIGNAL_BASE:
        return signal.Signals(code - SIGNAL_BASE).name
    return f"the file {STOP_FILE}" if code == EXIT_STOP_FILE else "the time limit"
