"""Several corpora read in proportion to their weights: which corpus a position belongs to, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from janus_pt.data.order import Ints

FINEST = 10**6
"""Shares are fractions with a denominator up to this, so that all sums are exact below 9e12 samples."""


def share_out(positions: Ints, weights: Sequence[float]) -> tuple[Ints, Ints]:
    """For each position of an endless stream, whose it is and how many of theirs came before.

    The owners are halved again and again; of the first n positions of a half, the left part has its share of n
    rounded to the nearest integer. Of any first n positions each owner has its share of n to within
    ceil(log2(owners)) / 2.
    """
    if len(weights) == 1:
        return np.zeros_like(positions), positions
    half = len(weights) // 2
    mine, total = (sum(map(Fraction, part), Fraction()) for part in (weights[:half], weights))
    share, of = (mine / total).limit_denominator(FINEST).as_integer_ratio()
    before, after = ((n * share + of // 2) // of for n in (positions, positions + 1))
    left = after > before
    owners, earlier = np.empty_like(positions), np.empty_like(positions)
    owners[left], earlier[left] = share_out(before[left], weights[:half])
    owners[~left], earlier[~left] = share_out((positions - before)[~left], weights[half:])
    owners[~left] += half
    return owners, earlier


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
        """Corpus, epoch of that corpus, and position in it, at `positions` of an epoch of the mixture."""
        corpus, earlier = share_out(epoch * self.size + positions, self.weights)
        sizes = np.array(self.sizes, dtype=np.int64)[corpus]
        return corpus, earlier // sizes, earlier % sizes
