"""Micro-batches: every sample of an epoch once, within the budget, of like length, the same from any cursor."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.config.schema import DataConfig
from janus_pt.data.batch_sampler import BatchStream, Cursor, cut
from janus_pt.utils.errors import UserError


@dataclass
class LengthsOnly:
    """What batches need to know of a corpus."""

    shard_lengths: list[list[int]]
    url: str = "corpus"

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(lengths) for lengths in self.shard_lengths])

    @property
    def longest(self) -> int:
        return max(max(lengths, default=0) for lengths in self.shard_lengths)

    @property
    def manifest(self) -> Any:
        shards = [
            SimpleNamespace(file=f"shard-{number:06d}.tar")
            for number in range(len(self.shard_lengths))
        ]
        return SimpleNamespace(samples=int(self.counts.sum()), shards=shards)

    def lengths(self, shard: int) -> np.ndarray:
        return np.array(self.shard_lengths[shard], dtype=np.int64)


def config(
    unit: str = "tokens", size: int = 40, window: int = 16, shuffle_shards: int = 2
) -> DataConfig:
    return DataConfig.model_validate(
        {
            **dict(
                train=[{"path": "corpus"}],
                batch_unit=unit,
                global_batch_size=size,
                micro_batch_size=size,
            ),
            **dict(window=window, shuffle_shards=shuffle_shards),
        }
    )


def stream_of(
    *corpora: LengthsOnly, weights: tuple[float, ...] = (1.0,), **settings: Any
) -> BatchStream:
    return BatchStream(corpora, weights, config(**settings), seed=1, max_length=40)  # type: ignore[arg-type]


def one_epoch(stream: BatchStream, epoch: int) -> list[np.ndarray]:
    return [
        batch for window in range(stream.windows) for batch in stream.window_batches(epoch, window)
    ]


corpora_strategy = st.lists(
    st.lists(st.integers(2, 40), max_size=10), min_size=1, max_size=8
).filter(any)


@given(
    lengths=corpora_strategy,
    unit=st.sampled_from(["tokens", "sequences"]),
    size=st.integers(40, 120),
    window=st.integers(1, 60),
    shuffle_shards=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_sample_once_in_batches_within_the_budget(
    lengths: list[list[int]], unit: str, size: int, window: int, shuffle_shards: int, epoch: int
) -> None:
    stream = stream_of(
        LengthsOnly(lengths), unit=unit, size=size, window=window, shuffle_shards=shuffle_shards
    )
    batches = one_epoch(stream, epoch)
    read = [(sample["shard"], sample["sample"]) for batch in batches for sample in batch]
    assert sorted(read) == [
        (shard, sample) for shard, samples in enumerate(lengths) for sample in range(len(samples))
    ]
    for batch in batches:
        longest = max(lengths[sample["shard"]][sample["sample"]] for sample in batch)
        assert 0 < len(batch) * (longest if unit == "tokens" else 1) <= size


@given(lengths=corpora_strategy, window=st.integers(1, 60), epoch=st.integers(0, 2))
def test_a_window_holds_its_own_positions(
    lengths: list[list[int]], window: int, epoch: int
) -> None:
    stream = stream_of(LengthsOnly(lengths), window=window)
    for number in range(stream.windows):
        positions = sorted(
            int(sample["position"])
            for batch in stream.window_batches(epoch, number)
            for sample in batch
        )
        assert positions == list(range(number * window, min((number + 1) * window, stream.samples)))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), size=st.integers(50, 200))
def test_batches_are_as_full_as_sorted_lengths_allow(lengths: list[int], size: int) -> None:
    lengths.sort()
    for unit in ("tokens", "sequences"):
        slices = cut(np.array(lengths), unit, size)
        assert [item for part in slices for item in lengths[part]] == lengths
        for part in slices[:-1]:
            count = part.stop - part.start + 1  # one more would have been too many
            assert count * (lengths[part.stop] if unit == "tokens" else 1) > size


@settings(max_examples=30)
@given(lengths=corpora_strategy, window=st.integers(1, 30), start=st.integers(0, 40))
def test_the_stream_goes_on_from_any_cursor_over_the_borders_of_epochs(
    lengths: list[list[int]], window: int, start: int
) -> None:
    beginning = list(
        islice(stream_of(LengthsOnly(lengths), window=window).from_cursor(Cursor()), start + 12)
    )
    cursor = beginning[start - 1][1] if start else Cursor()
    again = list(islice(stream_of(LengthsOnly(lengths), window=window).from_cursor(cursor), 12))
    assert [(batch.tolist(), after) for batch, after in again] == [
        (batch.tolist(), after) for batch, after in beginning[start:]
    ]


def test_the_stream_is_the_epochs_one_after_another() -> None:
    stream = stream_of(LengthsOnly([[7] * 30, [9] * 25]))
    epochs = [batch.tolist() for epoch in (0, 1, 2) for batch in one_epoch(stream, epoch)]
    assert [
        batch.tolist() for batch, _ in islice(stream.from_cursor(Cursor()), len(epochs))
    ] == epochs
    assert [batch.tolist() for batch in stream.first_epoch()] == epochs[: len(one_epoch(stream, 0))]


def test_batches_come_shuffled_and_ties_too() -> None:
    stream = stream_of(LengthsOnly([list(range(2, 34)) * 4]), window=128, size=40)
    longest = [
        max(int(sample["sample"]) % 32 for sample in batch) for batch in one_epoch(stream, 0)
    ]
    assert longest != sorted(longest)
    same = stream_of(LengthsOnly([[5] * 64]), window=64, size=4, unit="sequences")
    first, second = (
        [sorted(batch["sample"].tolist()) for batch in one_epoch(same, epoch)] for epoch in (0, 1)
    )
    assert sorted(first) != sorted(second)  # other samples meet in the next epoch
    positions = [batch["position"].tolist() for batch in one_epoch(same, 0)]
    assert any(
        np.ptp(batch) > 8 for batch in positions
    )  # samples of one length are not taken in their order


def test_a_mixture_reads_each_corpus_by_its_weight() -> None:
    big, small = LengthsOnly([[5] * 60]), LengthsOnly([[5] * 20])
    stream = stream_of(big, small, weights=(1.0, 3.0), window=16)
    for window in range(stream.windows):
        samples = np.concatenate(stream.window_batches(0, window))
        assert (samples["corpus"] == 1).sum() == 12
    read = np.concatenate(one_epoch(stream, 0))
    small_read = read[read["corpus"] == 1]
    assert sorted(
        zip(small_read["epoch"].tolist(), small_read["sample"].tolist(), strict=True)
    ) == [(epoch, sample) for epoch in range(3) for sample in range(20)]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (dict(size=30), "the 30 that data.micro_batch_size"),
        (dict(size=99), "the 40 that model.max_positions"),
    ],
)
def test_a_sample_that_fits_nowhere_is_named_before_anything_is_read(
    settings: dict[str, Any], key: str
) -> None:
    corpus = LengthsOnly([[5, 6], [7, 45, 8]], url="s3://bucket/corpus")
    with pytest.raises(
        UserError, match=f"s3://bucket/corpus/shard-000001.tar: sample 1 has 45 tokens .*{key}"
    ):
        stream_of(corpus, **settings)


def test_a_long_limit_is_no_error_when_no_sample_is_that_long() -> None:
    class Cautious(LengthsOnly):
        longest = 512  # type: ignore[assignment]

    assert stream_of(Cautious([[5, 6], [40]])).samples == 3


@pytest.mark.timeout(20)
def test_a_stream_left_alone_ends_without_threadings_locks() -> None:
    """The garbage collector may close one inside another thread's start, which holds them."""
    lock = getattr(threading, "_shutdown_locks_lock", None) or pytest.skip(
        "this Python starts threads without it"
    )
    stream = stream_of(LengthsOnly([[5] * 50])).from_cursor(Cursor())
    next(stream)
    with lock:
        stream.close()
