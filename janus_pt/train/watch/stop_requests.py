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
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import FrameType, TracebackType

import torch.distributed as dist

from janus_pt.config.run_schema import RunConfig
from janus_pt.parallel.job_store import job_store
from janus_pt.utils.errors import warn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SIGNAL_BASE = 128
"""Exit codes of signals begin here, as in a shell."""
STOP_FILE, EXIT_STOP_FILE, EXIT_TIME_LIMIT = "stop", 10, 11
FORWARDED_S = 3.0
"""A launcher forwards to its ranks what a terminal or Slurm has sent them already; a signal that
comes later than this is a second request."""
REQUEST, ANSWER = "stop/request", "stop/answer"
"""The store's keys: another rank's request, and with a number the first rank's answer after that step."""
KEPT_ANSWERS = 4
"""No rank is that many steps behind another: they need each other's gradients."""
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
        self._timeout_s = run.peer_timeout
        # Over the store, which every rank is connected to anyway. A group of the host's would connect
        # every two ranks of the job.
        self._store = job_store(run.peer_timeout) if dist.get_world_size() > 1 else None
        self._exchanges = 0
        self._requested = False
        self._exchange: Future[int] | None = None

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
            self._exchange.result()

    def agreed(self) -> int:
        """After a step: the exit code to leave with, the same on all ranks, or 0 to go on.

        Answers requests from before the last step: each call begins an exchange in a thread, and the
        next call takes its result, so that no step waits for it. All ranks take part.
        """
        code = 0 if self._exchange is None else self._exchange.result()
        self._exchange = Future()
        # A daemon: a store that is gone must not keep this process.
        threading.Thread(
            target=self._answer, args=(self._own_request(), self._exchange), daemon=True
        ).start()
        # Obeyed, hence removed: it must not stop the job that goes on, too.
        if code == EXIT_STOP_FILE and self._is_first:
            self._file.unlink(missing_ok=True)
        return code

    def _answer(self, request: int, answer: Future[int]) -> None:
        """In a thread: the first rank publishes what all do after the next step, the others read it."""
        try:
            answer.set_result(
                request if self._store is None else self._exchange_over_store(request)
            )
        except Exception as error:
            answer.set_exception(error)

    def _exchange_over_store(self, request: int) -> int:
        assert self._store is not None
        store = self._store.store
        number, self._exchanges = self._exchanges, self._exchanges + 1
        if not self._is_first:
            if request and not self._requested:
                self._requested = True
                store.set(REQUEST, str(request))
            return int(self._store.wait(f"{ANSWER}/{number}", self._timeout_s))
        if store.check([REQUEST]):
            # The maximum: a signal (128 and more) wins over file and clock, and anything over 0.
            request = max(request, int(store.get(REQUEST)))
        store.set(f"{ANSWER}/{number}", str(request))
        store.delete_key(f"{ANSWER}/{number - KEPT_ANSWERS}")
        return request

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
