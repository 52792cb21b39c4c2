"""Weights by temperature, against the closed form."""

from __future__ import annotations

import pytest

from janus_pt.data_prep.mixture import temperature_weights


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_weights_go_with_the_root_of_the_size(temperature: float) -> None:
    weights = temperature_weights([32_000_000_000, 1_000_000_000], temperature)
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] / weights[1] == pytest.approx(32 ** (1 / temperature))


def test_a_high_temperature_makes_all_equal() -> None:
    assert temperature_weights([10**9, 1, 10**4], 1e6) == pytest.approx([1 / 3] * 3, rel=1e-4)
