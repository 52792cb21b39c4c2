"""The learning rate against torch's schedulers and against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from janus_pt.config.schema import OptimizerConfig, ScheduleConfig
from janus_pt.train.schedule import learning_rate

LR = 3e-4
OPTIMIZER = OptimizerConfig(lr=LR)


def ours(schedule: ScheduleConfig, steps: range, max_steps: int) -> list[float]:
    return [learning_rate(step, OPTIMIZER, schedule, max_steps) for step in steps]


def torch_rates(
    build: type[lr_scheduler.LRScheduler], steps: int, **settings: float
) -> list[float]:
    """Rates of `steps` scheduler steps after the initial one."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = build(optimizer, **settings)
    rates = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def test_polynomial_is_torchs() -> None:
    expected = torch_rates(lr_scheduler.PolynomialLR, 50, total_iters=50, power=1.7)
    assert ours(ScheduleConfig(kind="polynomial", power=1.7), range(1, 51), 50) == pytest.approx(
        expected, abs=1e-12
    )


def test_cosine_is_torchs() -> None:
    expected = torch_rates(lr_scheduler.CosineAnnealingLR, 50, T_max=50, eta_min=1e-5)
    schedule = ScheduleConfig(kind="cosine", final_lr=1e-5)
    assert ours(schedule, range(1, 51), 50) == pytest.approx(expected, rel=1e-9)


def test_decay_after_warmup_is_torchs_shifted() -> None:
    expected = torch_rates(lr_scheduler.PolynomialLR, 40, total_iters=40, power=1.0)
    assert ours(ScheduleConfig(warmup_steps=10), range(11, 51), 50) == pytest.approx(
        expected, abs=1e-12
    )


def test_inverse_sqrt_is_its_closed_form() -> None:
    rates = ours(ScheduleConfig(kind="inverse_sqrt", warmup_steps=4), range(1, 17), 16)
    assert rates[:4] == pytest.approx([LR / 4, LR / 2, LR * 3 / 4, LR])
    assert rates[8] == pytest.approx(LR * 2 / 3)
    assert rates[15] == pytest.approx(LR / 2)
    no_warmup = ours(ScheduleConfig(kind="inverse_sqrt"), range(1, 10), 9)
    assert no_warmup == pytest.approx([LR / math.sqrt(s) for s in range(1, 10)])


@given(
    kind=st.sampled_from(["inverse_sqrt", "polynomial", "cosine"]),
    warmup=st.integers(0, 30),
    decay=st.integers(1, 100),
    share=st.floats(0.0, 1.0),
    power=st.floats(0.2, 4.0),
)
def test_the_rate_rises_to_lr_and_falls_to_final_lr(
    kind: str, warmup: int, decay: int, share: float, power: float
) -> None:
    schedule = ScheduleConfig.model_validate(
        {"kind": kind, "warmup_steps": warmup, "final_lr": share * LR, "power": power}
    )
    end = warmup + decay
    rates = ours(schedule, range(1, end + 1), end)
    peak = max(warmup, 1)
    if warmup or kind == "inverse_sqrt":
        assert rates[peak - 1] == pytest.approx(LR)
    assert rates[: peak - 1] == pytest.approx([LR * s / peak for s in range(1, peak)])
    assert all(a >= b - 1e-15 for a, b in zip(rates[peak - 1 :], rates[peak:], strict=False))
    if kind != "inverse_sqrt":
        assert rates[-1] == pytest.approx(share * LR, abs=1e-15)
        assert learning_rate(end + 7, OPTIMIZER, schedule, end) == pytest.approx(
            share * LR, abs=1e-15
        )


def test_a_warmup_may_take_the_whole_run() -> None:
    assert ours(ScheduleConfig(warmup_steps=5), range(1, 6), 5) == pytest.approx(
        [LR * s / 5 for s in range(1, 6)]
    )
