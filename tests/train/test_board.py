"""When a rank counts as lost, by the signs that came of it; the clock is made up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from janus_pt.train.watch.board import FAILED_S, GONE_S, START, Board, Position

TIMEOUT_S = 600.0
READING, TRAINING = Position(13, 7, "reading"), Position(14, 7, "training")


def board(ranks: int = 3, silent: bool = False) -> Board:
    return Board(range(ranks), TIMEOUT_S, silent, FAILED_S, now=0.0)


def everybody_lives(on: Board, until: int, positions: list[Position], since: int = 0) -> None:
    """A sign of every rank every 2 s, and no verdict."""
    for now in range(since, until, 2):
        for rank, position in enumerate(positions):
            on.heard(rank, position, float(now))
        assert on.verdict(float(now)) is None


def test_a_closed_connection_is_a_process_that_is_gone_after_a_moment() -> None:
    ranks = board()
    everybody_lives(ranks, 20, [TRAINING] * 3)
    ranks.closed(1, 20.0)
    assert ranks.verdict(20.0 + GONE_S - 0.1) is None
    assert ranks.verdict(20.0 + GONE_S) == "rank 1 is gone, last at step 7 (training)"


def test_a_failed_collective_makes_it_certain_at_once() -> None:
    ranks = board()
    ranks.failed("gloo: connection reset", 1.0)
    assert ranks.verdict(1.0) is None
    ranks.closed(2, 1.1)
    assert ranks.verdict(1.1) == f"rank 2 is gone, last at {START} [gloo: connection reset]"


def test_a_rank_that_says_that_it_leaves_may_close_its_connection() -> None:
    ranks = board()
    ranks.left(1)
    ranks.closed(1, 1.0)
    assert ranks.verdict(TIMEOUT_S / 2) is None


def test_a_rank_whose_connection_stays_open_is_frozen_after_the_time_limit_only() -> None:
    ranks = board(2)
    everybody_lives(ranks, 10, [TRAINING] * 2)
    everybody_lives(ranks, 600, [TRAINING._replace(number=15)], since=10)
    assert ranks.verdict(8 + TIMEOUT_S) is None
    text = ranks.verdict(9 + TIMEOUT_S)
    assert text == "rank 1 gave no sign of life for 601 s, last at step 7 (training)"


def test_a_rank_that_lives_but_hangs_is_named_when_all_stand_still() -> None:
    ranks = board()
    everybody_lives(ranks, 602, [TRAINING, READING, TRAINING])
    assert ranks.verdict(601.0) == "rank 1 is still at step 7 (reading)"


def test_a_slow_rank_is_none_that_hangs_as_long_as_others_move() -> None:
    ranks = board(2)
    for number in range(40):
        everybody_lives(
            ranks, 32 * (number + 1), [Position(number, number, "reading"), START], 32 * number
        )


@pytest.mark.parametrize(
    ("silent", "doing"), [(True, "training"), (False, "training"), (True, "saving")]
)
def test_all_in_one_step_for_ever_counts_where_collectives_wait_for_ever(
    silent: bool, doing: str
) -> None:
    ranks = board(silent=silent)
    everybody_lives(ranks, 602, [Position(14, 7, doing)] * 3)
    text = ranks.verdict(601.0)
    if silent and doing == "training":
        assert text == "no rank came past step 7 (training) for 600 s: a device hangs"
    else:
        assert text is None


def test_a_failed_collective_that_nothing_explains_names_who_is_behind_or_nobody() -> None:
    ranks = board(2)
    everybody_lives(ranks, 10, [TRAINING] * 2)
    ranks.failed("timed out", 9.0)
    assert ranks.verdict(9.0 + FAILED_S) is None
    expected = "a collective failed, and all ranks give signs of life [timed out]"
    assert ranks.verdict(9.1 + FAILED_S) == expected
    ranks.heard(0, Position(15, 8, "reading"), 12.0)
    assert ranks.verdict(9.1 + FAILED_S) == "rank 1 is still at step 7 (training) [timed out]"


BLOCKED = """
import ctypes
from janus_pt.train.watch.dead_man import DeadMansSwitch
switch = DeadMansSwitch(13)
switch.wind_up({seconds})
switch.wind_up({again})
# Unlike `CDLL`, it keeps the interpreter lock: no other thread of Python runs.
ctypes.PyDLL(None).usleep(600_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="POSIX timers of Linux")
@pytest.mark.parametrize(("seconds", "again", "code"), [(0.2, 0.2, 13), (0.2, 0, 0), (0.2, 60, 0)])
def test_the_switch_needs_no_python(seconds: float, again: float, code: int) -> None:
    text = BLOCKED.format(seconds=seconds, again=again)
    assert subprocess.run([sys.executable, "-c", text], timeout=60).returncode == code
