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
"""Purposes of random streams. Streams of different purposes are independent of each other."""


def random_stream(purpose: int, *key: int) -> np.random.PCG64:
    """The random stream of a purpose and a key of integers below 2**64."""
    # SeedSequence takes 32-bit words; as 64-bit integers, keys of equal length never give the same words.
    words = np.array((purpose, *key), dtype=np.uint64).view(np.uint32)
    return np.random.PCG64(np.random.SeedSequence(words))


def permutation(length: int, purpose: int, *key: int) -> Ints:
    """A random order of `range(length)`, int64."""
    # Sorting raw 64-bit numbers, since numpy may change `Generator.permutation`; stable, in case two are equal.
    return np.argsort(random_stream(purpose, *key).random_raw(length), kind="stable")


def sample_rng(seed: int, corpus: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one sample's noise: the same on any machine and in any process."""
    return np.random.Generator(random_stream(NOISE, seed, corpus, epoch, position))


class SampleOrder:
    """The order in which each epoch reads a corpus.

    The shards are permuted; each `shuffle_shards` consecutive ones of the permutation form a group, whose samples
    are permuted together. So a reader has that many shards open, and locating a position costs one permutation of
    the shards and one of the group's samples, at any distance from the start.
    """

    def __init__(self, counts: Ints, seed: int, shuffle_shards: int) -> None:
        """`counts` `[shards]`: samples of each shard."""
        self._counts = np.asarray(counts, dtype=np.int64)
        self._seed = seed
        self._group_size = shuffle_shards
        # Two of each: a window of positions may reach over the end of an epoch, or of a group.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._group = lru_cache(maxsize=2)(self._make_group)

    def locate(self, epoch: int, positions: Ints) -> tuple[Ints, Ints]:
        """Shard ids and sample ids within them, at `positions` (each in `[0, sum(counts))`) of an epoch."""
        _, group_starts = self._epoch(epoch)
        groups = np.searchsorted(group_starts, positions, side="right") - 1
        shards = np.empty_like(positions)
        samples = np.empty_like(positions)
        for group in np.unique(groups).tolist():
            in_group = groups == group
            offsets = positions[in_group] - group_starts[group]
            shards[in_group], samples[in_group] = self._locate_in_group(epoch, group, offsets)
        return shards, samples

    def _locate_in_group(self, epoch: int, group: int, offsets: Ints) -> tuple[Ints, Ints]:
        """Shard ids and sample ids at positions counted from the group's first."""
        members = self._members(epoch, group)
        ends = np.cumsum(self._counts[members])
        starts = ends - self._counts[members]
        # Numbers of samples in the group's shards laid end to end, in the group's random order.
        shuffled = self._group(epoch, group)[offsets]
        # side="right": the first number behind a shard's end belongs to the next shard with samples.
        member = np.searchsorted(ends, shuffled, side="right")
        return members[member], shuffled - starts[member]

    def _members(self, epoch: int, group: int) -> Ints:
        """The shards of a group."""
        shards, _ = self._epoch(epoch)
        first = group * self._group_size
        return shards[first : first + self._group_size]

    def _make_epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The permuted shards, and the position at which each group starts."""
        shards = permutation(len(self._counts), SHARDS, self._seed, epoch)
        ends = np.cumsum(self._counts[shards])
        starts = ends - self._counts[shards]
        return shards, starts[:: self._group_size]

    def _make_group(self, epoch: int, group: int) -> Ints:
        """The random order of a group's samples."""
        length = int(self._counts[self._members(epoch, group)].sum())
        return permutation(length, SAMPLES, self._seed, epoch, group)
