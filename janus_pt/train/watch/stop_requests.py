"""Being asked to stop: by a signal, a file, or the clock. The run saves at the next step and leaves.

| asked by | exit code |
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

from janus_pt.config.schema import RunConfig
from janus_pt.utils.errors import warn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOP_FILE, EXIT_STOP_FILE, EXIT_TIME_LIMIT = "stop", 10, 11
FORWARDED_S = 3.0
"""A launcher passes on to its ranks what a terminal or Slurm has sent them already; later it is a second request."""
SLURM_MARGIN_S = 300.0
"""Seconds before Slurm's end of the job at which a run stops."""


class StopRequests:
    """Requests to stop, and the ranks' agreement on the step after which they do.

    A context: signals are taken while it is open. A signal that comes again ends the process at once; what is being
    written then does no harm, since nothing unfinished bears a name that counts.
    """

    def __init__(self, run: RunConfig) -> None:
        self._file = Path(run.output_dir) / STOP_FILE
        self._deadline = deadline(run.max_minutes)
        self._watches = dist.get_rank() == 0
        self._code = 0
        self._first = 0.0
        # On the host, so that no step waits for the device. All ranks take part in making the group.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=run.peer_timeout))
        self._agreed = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def __enter__(self) -> StopRequests:
        self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self._pending is not None:
            self._pending.wait()  # after an error no rank can count on the others

    def agreed(self) -> int:
        """After a step: the exit code to leave with, the same on all ranks, or 0 to go on.

        Tells what was asked for before the last step: the exchange is begun with each call, and its result taken by
        the next. All ranks take part.
        """
        if self._pending is not None:
            self._pending.wait()
        code = int(self._agreed)
        self._agreed = torch.tensor([self._asked()], dtype=torch.int32)
        self._pending = dist.all_reduce(
            self._agreed, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        if code == EXIT_STOP_FILE and self._watches:
            self._file.unlink(missing_ok=True)
        return code

    def _asked(self) -> int:
        """This rank's wish; the first rank looks at the file and the clock for all."""
        if self._code or not self._watches:
            return self._code
        if time.time() > self._deadline:
            return EXIT_TIME_LIMIT
        return EXIT_STOP_FILE if self._file.exists() else 0

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._code and time.monotonic() - self._first > FORWARDED_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self._code:
            self._code, self._first = 128 + number, time.monotonic()
            warn(
                f"{signal.Signals(number).name}: saving after the next step; once more to leave at once"
            )


def deadline(max_minutes: float | None) -> float:
    """The time, in seconds since 1970, at which a job that starts now is to stop; infinity if nothing limits it."""
    ends = [] if max_minutes is None else [time.time() + 60 * max_minutes]
    if "SLURM_JOB_END_TIME" in os.environ:
        ends.append(float(os.environ["SLURM_JOB_END_TIME"]) - SLURM_MARGIN_S)
    return min(ends, default=float("inf"))


def describe(code: int) -> str:
    """What asked for the stop that ends with this exit code."""
    if code > 128:
        return signal.Signals(code - 128).name
    return f"the file {STOP_FILE}" if code == EXIT_STOP_FILE else "the time limit"
