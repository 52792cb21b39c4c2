"""Times of a step's phases, and the comparison of ranks."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from janus_pt.train.report.phases import Phases, StepTimes
from janus_pt.train.report.ranks import compare_ranks
from tests.support.ranks import run_ranks


def test_phases_add_up_to_the_mean_time_of_a_step() -> None:
    phases = Phases(torch.device("cpu"))
    started = time.perf_counter()
    for _ in range(2):
        with phases.on_host("data"):
            time.sleep(0.02)
        phases.enter("before_exchange")
        time.sleep(0.03)
        phases.enter("last_backward")
        phases.enter("update")
        time.sleep(0.01)
        phases.end_step()
    seconds = time.perf_counter() - started
    times = phases.take()
    assert sum(times) == pytest.approx(seconds / 2, abs=0.005)
    assert times.data >= 0.02 and times.before_exchange >= 0.03 and times.update >= 0.01
    assert times.checkpoint == 0 and times.last_backward < 0.005
    assert phases.take() == StepTimes(0, 0, 0, 0, 0)


def _compare() -> dict[str, float]:
    dist.init_process_group("gloo")
    try:
        rank = dist.get_rank()
        times = StepTimes(
            data=1.0, before_exchange=2.0 * rank, last_backward=9 - rank, update=0, checkpoint=0
        )
        return compare_ranks(times, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_the_slowest_rank_is_the_one_that_works_longest_before_the_exchange() -> None:
    # Its work is 1 + 2 s, the mean 2 s. A CPU has no peak of a device's memory.
    assert run_ranks(_compare, 2) == [{"slowest_rank": 1, "slowest_rank_ratio": 1.5}] * 2
