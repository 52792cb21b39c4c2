"""Several corpora read in proportion to their weights: which corpus a position belongs to, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from janus_pt.data.order import Ints

MAX_DENOMINATOR = 10**6
"""Shares are fractions with a denominator up to this, so that products fit int64 below 9e12 samples."""


def share_out(positions: Ints, weights: Sequence[float]) -> tuple[Ints, Ints]:
    """For each position of an endless stream, who owns it, and how many earlier positions that owner has.

    The owners are halved again and again. Of the first n positions of a half, the left part owns its share of n,
    rounded to the nearest integer. So of any first n positions each owner has its share of n to within
    ceil(log2(owners)) / 2.

    Args:
        positions: int64, in any order.
        weights: one for each owner, above 0; only their ratios count.

    Returns:
        Indices into `weights`, and the counts; both int64, shaped like `positions`.
    """
    if len(weights) == 1:
        return np.zeros_like(positions), positions
    half = len(weights) // 2
    numerator, denominator = _share(weights[:half], weights)

    # Integers, not floats: every process computes the same owner however far the run has come.
    left_before = _rounded(positions * numerator, denominator)
    left_after = _rounded((positions + 1) * numerator, denominator)
    # A position belongs to the left part if it raises the left part's count.
    is_left = left_after > left_before
    is_right = ~is_left
    right_before = positions - left_before

    # Each part is a stream of its own, in which a position's number is the count before it.
    owners = np.empty_like(positions)
    earlier = np.empty_like(positions)
    owners[is_left], earlier[is_left] = share_out(left_before[is_left], weights[:half])
    owners[is_right], earlier[is_right] = share_out(right_before[is_right], weights[half:])
    owners[is_right] += half
    return owners, earlier


def _share(part: Sequence[float], whole: Sequence[float]) -> tuple[int, int]:
    """The part's share of the whole weight, as numerator and denominator."""
    # Exact sums: a float's rounding would depend on the order of the corpora.
    weight = sum(map(Fraction, part), Fraction())
    total = sum(map(Fraction, whole), Fraction())
    share = (weight / total).limit_denominator(MAX_DENOMINATOR)
    return share.as_integer_ratio()


def _rounded(numerators: Ints, denominator: int) -> Ints:
    """Quotients rounded to the nearest integer, halves up."""
    return (numerators + denominator // 2) // denominator


@dataclass(frozen=True)
class Mixture:
    """Corpora of `sizes` samples, read with `weights`.

    An epoch of the mixture has as many samples as all corpora together. Each corpus is read epoch after epoch at
    its own pace; a single corpus is read exactly once an epoch.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def size(self) -> int:
        """Samples of one epoch."""
        return sum(self.sizes)

    def locate(self, epoch: int, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Corpus, epoch of that corpus, and position in that epoch, at `positions` of an epoch of the mixture."""
        # The stream has no epochs: a corpus continues where the last epoch of the mixture left it.
        stream_positions = epoch * self.size + positions
        corpus, earlier = share_out(stream_positions, self.weights)
        corpus_size = np.array(self.sizes, dtype=np.int64)[corpus]
        return corpus, earlier // corpus_size, earlier % corpus_size
