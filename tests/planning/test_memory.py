"""The memory formula against what a training step takes on this machine."""

from __future__ import annotations

import pytest

from tests.support.measured_memory import CASES, estimate, measured

CHECKED = [
    "float32, ZeRO-1",
    "bfloat16, ZeRO-1, 2 micro-batches",
    "float32, ZeRO-1, activation checkpointing",
    "float32, ZeRO-1, tensor 2, sequence parallel",
    "bfloat16, ZeRO-1, pipeline 2, 4 micro-batches",
]
"""Every kind of state and of activations once."""
EXHAUSTIVE = [
    "float32, ZeRO-0, large vocabulary",
    "float32, ZeRO-2, 2 micro-batches, deep",
    "float32, ZeRO-1, gated, RMSNorm, rotary",
    "float32, ZeRO-1, grouped heads",
    "float32, ZeRO-1, attention recomputed",
    "float32, ZeRO-1, tensor 2",
]
"""Before a release. The other cases take as long and show no other part of the formula."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*CHECKED, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in EXHAUSTIVE)],
)
def test_the_estimate_is_near_what_is_measured(name: str) -> None:
    case = CASES[name]
    assert [stage.peak for stage in estimate(case)] == pytest.approx(measured(case), rel=0.15)
