"""The global order: every sample once an epoch, a pure function of its arguments, found by seeking."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.data.mixture import Mixture, share_out
from janus_pt.data.order import SAMPLES, SHARDS, SampleOrder, permutation, sample_rng

counts_lists = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


def whole_epoch(order: SampleOrder, counts: list[int], epoch: int) -> list[tuple[int, int]]:
    shards, samples = order.locate(epoch, np.arange(sum(counts)))
    return list(zip(shards.tolist(), samples.tolist(), strict=True))


@given(
    counts=counts_lists,
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 2**40),
    group=st.integers(1, 14),
)
def test_an_epoch_has_every_sample_once(
    counts: list[int], seed: int, epoch: int, group: int
) -> None:
    order_of_epoch = whole_epoch(SampleOrder(np.array(counts), seed, group), counts, epoch)
    assert sorted(order_of_epoch) == [
        (shard, sample) for shard, count in enumerate(counts) for sample in range(count)
    ]


@given(counts=counts_lists, seed=st.integers(0, 9), data=st.data())
def test_positions_are_found_alike_alone_in_any_order_and_by_a_fresh_reader(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    order = SampleOrder(np.array(counts), seed, 3)
    order_of_epoch = whole_epoch(order, counts, 5)
    picked = data.draw(st.lists(st.integers(0, sum(counts) - 1), min_size=1, max_size=8))
    order.locate(6, np.array(picked))  # whatever was asked before has no influence
    for reader in (order, SampleOrder(np.array(counts), seed, 3)):
        shards, samples = reader.locate(5, np.array(picked))
        assert list(zip(shards.tolist(), samples.tolist(), strict=True)) == [
            order_of_epoch[position] for position in picked
        ]


def test_samples_are_shuffled_among_the_shards_of_a_group_only() -> None:
    counts = [50] * 12
    shards = np.array(whole_epoch(SampleOrder(np.array(counts), 1, 4), counts, 0))[:, 0].reshape(
        3, 200
    )
    groups = [set(group) for group in shards.tolist()]
    assert [len(group) for group in groups] == [4, 4, 4]
    assert set.union(*groups) == set(range(12))
    assert all(
        len(set(group[:20])) == 4 for group in shards.tolist()
    )  # not one shard after another


def test_epochs_and_seeds_differ() -> None:
    counts = [40] * 10
    epochs = [
        whole_epoch(SampleOrder(np.array(counts), seed, 4), counts, epoch)
        for seed in (1, 2)
        for epoch in (0, 1)
    ]
    for number, first in enumerate(epochs):
        for second in epochs[:number]:
            assert sum(a == b for a, b in zip(first, second, strict=True)) < 40  # about 1 by chance
    assert (
        len({frozenset(shard for shard, _ in epoch[:160]) for epoch in epochs}) == 4
    )  # other shards come first


def test_permutations_are_uniform() -> None:
    seen = Counter(tuple(permutation(4, SHARDS, 7, key).tolist()) for key in range(2400))
    chi_squared = sum((seen[order] - 100) ** 2 / 100 for order in seen)
    assert len(seen) == 24
    assert chi_squared < 53  # 23 degrees of freedom: exceeded with probability 0.0004


def test_the_order_stays_the_same_for_ever() -> None:
    """A resumed run must find the order it began with, whatever numpy has become."""
    assert permutation(8, SHARDS, 1, 0).tolist() == [5, 4, 1, 0, 2, 6, 3, 7]
    assert permutation(8, SAMPLES, 1, 0, 0).tolist() == [3, 4, 0, 5, 2, 6, 1, 7]
    assert sample_rng(1, 0, 2, 3).bit_generator.random_raw(2).tolist() == [
        4638911051079740129,
        6422078009303203285,
    ]


def test_noise_belongs_to_the_sample() -> None:
    keys = list(itertools.product((0, 1), repeat=4))  # seed, corpus, epoch, position
    draws = [sample_rng(*key).integers(2**62) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [sample_rng(*key).integers(2**62) for key in keys]
    assert sample_rng(1, 0, 2**33, 0).integers(2**62) != sample_rng(1, 2, 0, 0).integers(2**62)


def test_seeking_far_into_many_shards_is_quick_and_small() -> None:
    counts = np.random.default_rng(0).integers(500, 2500, 10**6)
    tracemalloc.start()
    start = time.perf_counter()
    shards, samples = SampleOrder(counts, 1, 16).locate(3, np.arange(10**9, 10**9 + 16384))
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (samples < counts[shards]).all() and len(
        set(zip(shards.tolist(), samples.tolist(), strict=True))
    ) == 16384
    assert seconds < 2
    assert peak < 200e6


weights_lists = st.lists(
    st.sampled_from([0.01, 0.1, 0.3, 1.0, 1.5, 2.0, 7.0, 1 / 3]), min_size=1, max_size=7
)


@given(weights=weights_lists)
def test_shares_follow_the_weights_at_every_position(weights: list[float]) -> None:
    owners, earlier = share_out(np.arange(600), weights)
    bound = max(0, np.ceil(np.log2(len(weights)))) / 2 + 1e-9
    for owner, weight in enumerate(weights):
        mine = owners == owner
        assert earlier[mine].tolist() == list(
            range(mine.sum())
        )  # its own stream, without gap or repeat
        due = np.arange(1, 601) * float(Fraction(weight) / sum(map(Fraction, weights)))
        assert np.abs(np.cumsum(mine) - due).max() <= bound


@pytest.mark.parametrize("weights", [[0.7, 0.3], [5.0, 1.0, 0.2], [0.1, 0.2, 0.3, 0.4]])
def test_shares_stay_within_one_sample_however_far(weights: list[float]) -> None:
    far = 10**11
    owners, earlier = share_out(np.arange(far, far + 1000), weights)
    for owner, weight in enumerate(weights):
        mine = np.flatnonzero(owners == owner)
        due = float(
            (far + int(mine[0]))
            * Fraction(str(weight))
            / sum(Fraction(str(each)) for each in weights)
        )
        assert abs(earlier[mine[0]] - due) <= 1


def test_one_corpus_is_read_once_an_epoch_in_its_own_order() -> None:
    corpus, epoch, position = Mixture((10,), (0.3,)).locate(4, np.arange(10))
    assert (
        corpus.tolist() == [0] * 10
        and epoch.tolist() == [4] * 10
        and position.tolist() == list(range(10))
    )


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4), data=st.data())
def test_each_corpus_of_a_mixture_is_read_epoch_after_epoch(
    sizes: list[int], data: st.DataObject
) -> None:
    weights = data.draw(
        st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=len(sizes), max_size=len(sizes))
    )
    mixture = Mixture(tuple(sizes), tuple(weights))
    read: list[list[tuple[int, int]]] = [[] for _ in sizes]
    for epoch in range(5):
        for corpus, own_epoch, position in zip(
            *mixture.locate(epoch, np.arange(mixture.size)), strict=True
        ):
            read[corpus].append((int(own_epoch), int(position)))
    for size, got in zip(sizes, read, strict=True):
        assert got == [divmod(number, size) for number in range(len(got))]
