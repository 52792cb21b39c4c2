"""What a run records of itself: the arguments, and what a CPU cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus_pt.launch import parse_steps
from janus_pt.train.report.instruments import Instruments
from janus_pt.utils.errors import UserError


def test_steps_are_one_or_a_range() -> None:
    assert list(parse_steps("7")) == [7]
    assert list(parse_steps("11-13")) == [11, 12, 13]


@pytest.mark.parametrize("text", ["", "0", "x", "5-3", "1-2-3", "-4"])
def test_what_names_no_steps_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--profile takes a step"):
        parse_steps(text)


def test_a_cpu_has_no_memory_to_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this run is on a CPU"):
        Instruments(range(0), True, tmp_path).start()
