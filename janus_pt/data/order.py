"""The order of a corpus's samples: a pure function of (seed, epoch, position).

Random numbers are raw output of numpy's PCG64 seeded through SeedSequence, both of which numpy promises never to
change (NEP 19); the methods of `Generator` carry no such promise, so no order is made with them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]

SHARDS, SAMPLES, TIES, BATCHES, NOISE = range(5)
"""What a random stream is for: streams of different purposes have nothing to do with each other."""


def random_stream(purpose: int, *key: int) -> np.random.PCG64:
    """The random stream of a purpose and a key of integers below 2**64."""
    words = np.array((purpose, *key), dtype=np.uint64).view(np.uint32)
    return np.random.PCG64(np.random.SeedSequence(words))


def permutation(length: int, purpose: int, *key: int) -> Ints:
    """A random order of `range(length)`, int64."""
    return np.argsort(random_stream(purpose, *key).random_raw(length), kind="stable")


def sample_rng(seed: int, corpus: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one sample's noise: the same on any machine, whoever reads the sample."""
    return np.random.Generator(random_stream(NOISE, seed, corpus, epoch, position))


class SampleOrder:
    """The order in which each epoch reads a corpus.

    The shards are permuted; each `shuffle_shards` consecutive ones of the permutation form a group, whose samples
    are permuted together. So a reader has that many shards open, and finding a position costs one permutation of
    the shards and one of the group's samples, wherever it lies.
    """

    def __init__(self, counts: Ints, seed: int, shuffle_shards: int) -> None:
        """`counts` `[shards]`: samples of each shard."""
        self._counts = np.asarray(counts, dtype=np.int64)
        self._seed = seed
        self._group_size = shuffle_shards
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._group = lru_cache(maxsize=2)(self._make_group)

    def locate(self, epoch: int, positions: Ints) -> tuple[Ints, Ints]:
        """Shard ids and sample ids within them, at `positions` (each in `[0, sum(counts))`) of an epoch."""
        _, starts = self._epoch(epoch)
        groups = np.searchsorted(starts, positions, side="right") - 1
        shards, samples = np.empty_like(positions), np.empty_like(positions)
        for group in np.unique(groups).tolist():
            here = groups == group
            shards[here], samples[here] = self._locate_in_group(
                epoch, group, positions[here] - starts[group]
            )
        return shards, samples

    def _locate_in_group(self, epoch: int, group: int, positions: Ints) -> tuple[Ints, Ints]:
        members = self._members(epoch, group)
        ends = np.cumsum(self._counts[members])
        shuffled = self._group(epoch, group)[positions]
        which = np.searchsorted(ends, shuffled, side="right")
        return members[which], shuffled - (ends - self._counts[members])[which]

    def _members(self, epoch: int, group: int) -> Ints:
        shards, _ = self._epoch(epoch)
        return shards[group * self._group_size : (group + 1) * self._group_size]

    def _make_epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The permuted shards, and the position at which each group starts."""
        shards = permutation(len(self._counts), SHARDS, self._seed, epoch)
        ends = np.cumsum(self._counts[shards])
        return shards, (ends - self._counts[shards])[:: self._group_size]

    def _make_group(self, epoch: int, group: int) -> Ints:
        length = int(self._counts[self._members(epoch, group)].sum())
        return permutation(length, SAMPLES, self._seed, epoch, group)
