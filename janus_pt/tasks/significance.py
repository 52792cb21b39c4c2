"""Paired bootstrap of metrics that are a ratio of sums over the outputs, such as error rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SAMPLES = 1000
SEED = 12345
"""sacrebleu's default for its own bootstrap."""
INTERVAL = (2.5, 97.5)
"""Percentiles that the interval lies between."""


@dataclass(frozen=True)
class Sums:
    """Numerator and denominator of each output, `[outputs]`; over all outputs they give the value."""

    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]

    def percentage(self) -> float:
        """The value of all outputs."""
        # References may all be empty, with nothing to divide by: each error then counts as one.
        return float(100 * self.numerators.sum() / max(1.0, self.denominators.sum()))

    def resampled(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The value of each resample `indices [resamples, outputs]`."""
        numerators = self.numerators[indices].sum(axis=1)
        denominators = self.denominators[indices].sum(axis=1)
        values: NDArray[np.float64] = 100 * numerators / np.maximum(1.0, denominators)
        return values


def paired_bootstrap_of_sums(system: Sums, baseline: Sums) -> dict[str, float]:
    """A system against another on the same outputs, with the keys of `bleu.paired_bootstrap`.

    The p-value is sacrebleu's (Riezler and Maxwell 2005): the share of resamples whose difference is
    as far from the mean difference as the observed one is from 0.
    """
    count = len(system.numerators)
    rng = np.random.default_rng(SEED)
    # The same resamples for both: that makes the test a paired one.
    indices = rng.integers(0, count, (BOOTSTRAP_SAMPLES, count))
    ours, theirs = system.resampled(indices), baseline.resampled(indices)
    difference = system.percentage() - baseline.percentage()
    deviations = np.abs((ours - theirs) - (ours - theirs).mean())
    at_least_as_far = int((deviations >= abs(difference)).sum())
    return {
        "baseline": float(theirs.mean()),
        "baseline_ci": half_width(theirs),
        "system": float(ours.mean()),
        "system_ci": half_width(ours),
        "p_value": (at_least_as_far + 1) / (BOOTSTRAP_SAMPLES + 1),
        "difference": difference,
    }


def half_width(values: NDArray[np.float64]) -> float:
    """Half the width of the 95 % interval of resampled values."""
    low, high = np.percentile(values, INTERVAL)
    return float((high - low) / 2)
