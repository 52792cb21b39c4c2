"""The plan's memory of a GPU against torch's CUDA allocator in real steps, on the null GPU."""

from __future__ import annotations

import pytest

from tests.support.null_gpu.memory import ROWS, measured
from tests.support.null_gpu.processes import needs_null_gpu

pytestmark = [pytest.mark.null_gpu, needs_null_gpu]


@pytest.mark.parametrize("name", ROWS)
def test_the_plan_is_within_five_percent(name: str) -> None:
    allocated, _ = measured(name)
    assert ROWS[name].estimate().peak == pytest.approx(allocated, rel=0.05)
