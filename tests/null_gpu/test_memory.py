"""The plan's memory of a GPU against torch's CUDA allocator in real steps, on the null GPU."""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.null_gpu.memory import GIB, ROWS, measured
from tests.support.null_gpu.processes import needs_null_gpu

pytestmark = [pytest.mark.null_gpu, needs_null_gpu]
of_row = cache(measured)


@pytest.mark.parametrize("name", ROWS)
def test_the_plan_is_within_five_percent(name: str) -> None:
    allocated, reserved = of_row(name)
    formula = ROWS[name].estimate().peak
    print(f"{name}: {formula / GIB:.2f}, {allocated / GIB:.2f}, reserved {reserved / GIB:.2f}")
    assert formula == pytest.approx(allocated, rel=0.05)


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("xl")])
def test_little_is_reserved_that_is_not_used(name: str) -> None:
    allocated, reserved = of_row(name)
    assert reserved <= 1.1 * allocated
