"""The progress line: how a run goes, on stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
"""In a log, where a line cannot be rewritten in place, one is printed this often."""


class ProgressLine:
    """One line that says how the run goes, rewritten in place on a terminal. First rank only."""

    def __init__(self, max_steps: int, step: int = 0, stream: TextIO | None = None) -> None:
        self._max_steps = max_steps
        self._stream = stream or sys.stderr
        # The bar only keeps the line at the bottom of the terminal; its text is ours.
        self._bar = tqdm(
            file=self._stream,
            disable=not self._stream.isatty(),
            bar_format="{desc}",
            dynamic_ncols=True,
        )
        self._first_step = step
        self._started = time.monotonic()
        self._last_line = -math.inf

    def update(self, record: Mapping[str, float]) -> None:
        """Show a record of `metrics.jsonl`; a validation gets a line that stays."""
        text = describe_record(record, self._max_steps)
        if _is_validation(record):
            tqdm.write(text, file=self._stream)
            return
        # Not the wall clock, which may be set while a run lasts for weeks.
        now = time.monotonic()
        step = int(record["step"])
        text += self._remaining(step, now)
        # The last step is always shown: a log must end with the end of the run.
        if not self._bar.disable:
            self._bar.set_description_str(text)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES or step == self._max_steps:
            self._last_line = now
            tqdm.write(text, file=self._stream)

    def close(self) -> None:
        """Leave the last line as it stands."""
        self._bar.close()

    def _remaining(self, step: int, now: float) -> str:
        """The time left at the mean speed of this job; steps before a resume do not count."""
        steps_done = step - self._first_step
        if steps_done <= 0:
            return ""
        seconds_per_step = (now - self._started) / steps_done
        seconds_left = (self._max_steps - step) * seconds_per_step
        return f"  ETA {timedelta(seconds=round(seconds_left))}"


def describe_record(record: Mapping[str, float], max_steps: int) -> str:
    """A record as text: step, every loss, tokens per second, MFU."""
    parts = [f"step {int(record['step'])}/{max_steps}"]
    # A validation has the same names of losses: only this word tells them apart.
    if _is_validation(record):
        parts.append("validation")
    for key, value in record.items():
        _, is_loss, name = key.rpartition("loss/")
        if is_loss:
            parts.append(f"{name} {value:.3f}")
    if "tokens_per_s" in record:
        parts.append(f"{tqdm.format_sizeof(record['tokens_per_s'])} tokens/s")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    return "  ".join(parts)


def _is_validation(record: Mapping[str, float]) -> bool:
    return any(key.startswith("valid/") for key in record)
