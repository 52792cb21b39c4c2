"""Worker processes: order, bounded work, failures, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from janus_pt.utils.errors import UserError
from janus_pt.utils.processes import map_in_order, worker_pool

AHEAD = 3
_factor = 0


def set_factor(factor: int) -> None:
    global _factor
    _factor = factor


def multiply(number: int) -> int:
    if number % 2:
        time.sleep(0.02)
    return _factor * number


def fail_at_five(number: int) -> int:
    if number == 5:
        raise UserError("five")
    return number


def die_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_keep_the_order_and_no_more_is_read_than_was_asked_for() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    with worker_pool(2, set_factor, 10) as pool:
        for used, (item, result) in enumerate(map_in_order(pool, multiply, items(), AHEAD)):
            assert (item, result) == (used, 10 * used)
            assert taken <= used + 1 + AHEAD


def test_an_error_comes_in_its_turn() -> None:
    results = []
    with worker_pool(2) as pool, pytest.raises(UserError, match="five"):
        for _, result in map_in_order(pool, fail_at_five, range(20), AHEAD):
            results.append(result)
    assert results == [0, 1, 2, 3, 4]


def test_results_before_an_input_that_cannot_be_read_are_not_lost_to_the_error() -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise UserError("input")

    results = []
    with worker_pool(1) as pool, pytest.raises(UserError, match="input"):
        for _, result in map_in_order(pool, fail_at_five, [0, 1, 2], AHEAD):
            results.append(result)
        for _, result in map_in_order(pool, abs, items(), AHEAD):
            results.append(result)
    assert results == [0, 1, 2, *range(10 - AHEAD)]


def test_a_killed_worker_is_reported() -> None:
    with worker_pool(1) as pool, pytest.raises(UserError, match="a worker process died"):
        list(map_in_order(pool, die_at_five, range(20), AHEAD))


PARENT = """
import os, time
from janus_pt.utils.processes import worker_pool
if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


def test_a_worker_ends_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=60)
