"""The endless stream of micro-batches: a pure function of the seed, the corpora and the batch budget.

An epoch of the mixture is read in *windows* of consecutive positions. Inside a window samples of like length are
put together, and the micro-batches shuffled. Steps take consecutive micro-batches, over the borders of windows
and epochs; who computes which micro-batch of a step has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from janus_pt.config.schema import DataConfig
from janus_pt.data import files as store
from janus_pt.data.corpus import Corpus
from janus_pt.data.mixture import Mixture
from janus_pt.data.order import BATCHES, TIES, Ints, SampleOrder, permutation, random_stream
from janus_pt.utils.errors import UserError, warn

SAMPLE = np.dtype([(name, np.int64) for name in ("corpus", "epoch", "position", "shard", "sample")])
"""A sample: its corpus, the epoch of that corpus and the position in it, and where its tokens lie."""

Samples = np.ndarray[Any, np.dtype[np.void]]


class Cursor(NamedTuple):
    """A place in the stream: the next micro-batch is number `batch` of this window of this epoch."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


def cut(lengths: Ints, unit: str, size: int) -> list[slice]:
    """Cut samples, sorted by length, into micro-batches.

    Args:
        lengths: ascending, `[samples]`, none above `size` if the unit is tokens.
        unit: `tokens` (a batch costs its longest sample times its number of samples) or `sequences`.
        size: the most a batch may cost.
    """
    slices, start = [], 0
    for end, length in enumerate(lengths.tolist()):
        cost = (end - start + 1) * (length if unit == "tokens" else 1)
        if cost > size:
            slices.append(slice(start, end))
            start = end
    slices.append(slice(start, len(lengths)))
    return slices


def check_lengths(corpora: Sequence[Corpus], data: DataConfig, max_length: int) -> int:
    """The most tokens a sample may have, such that every batch and the position table can hold it.

    The manifest's `max_tokens` settles it as a rule; only where that is above the limit are all indices read.

    Args:
        max_length: the most tokens of a sequence, bos and eos counted.

    Raises:
        UserError: names the first sample that is longer; with `data.on_error` = "skip", only if all are.
    """
    limit, key = max_length, "model.max_positions"
    if data.batch_unit == "tokens" and data.micro_batch_size < limit:
        limit, key = data.micro_batch_size, "data.micro_batch_size"
    for corpus in corpora:
        too_long = 0
        for number, shard in enumerate(corpus.manifest.shards if corpus.longest > limit else ()):
            lengths = corpus.lengths(number)
            longer = np.flatnonzero(lengths > limit)
            too_long += len(longer)
            problem = (
                f"more than {key} = {limit}; raise it, or build the corpus with smaller blocks"
            )
            for sample in longer[:1].tolist() if data.on_error == "stop" else ():
                place = f"{store.join(corpus.url, shard.file)}: sample {sample}"
                raise UserError(f"{place} has {lengths[sample]} tokens with bos and eos, {problem}")
        if too_long:
            told = f"{corpus.url}: {too_long} of {corpus.manifest.samples} samples have {problem}"
            if too_long == corpus.manifest.samples:
                raise UserError(told)
            warn(f"left out in every epoch: {told}")
    return limit


class BatchStream:
    """Micro-batches of a mixture of corpora, each an array `[samples]` of `SAMPLE`."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: Sequence[float],
        data: DataConfig,
        seed: int,
        max_length: int,
    ) -> None:
        """`data` gives the batch budget, the window and the number of shards shuffled together.

        Raises:
            UserError: a sample is longer than `max_length` or than the batch budget.
        """
        self._longest = check_lengths(corpora, data, max_length)
        self._corpora = corpora
        self._orders = [SampleOrder(corpus.counts, seed, data.shuffle_shards) for corpus in corpora]
        self._mixture = Mixture(
            tuple(corpus.manifest.samples for corpus in corpora), tuple(weights)
        )
        self._data = data
        self._seed = seed

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return self._mixture.size

    @property
    def windows(self) -> int:
        """Windows of an epoch; the last one may be shorter."""
        return -(-self.samples // self._data.window)

    def window_batches(self, epoch: int, window: int) -> tuple[Samples, ...]:
        """The micro-batches of a window: a pure function of its arguments.

        Samples that are too long are not in it; `check_lengths` has let them pass only if they are to be left out.
        """
        first = window * self._data.window
        positions = np.arange(first, min(first + self._data.window, self.samples), dtype=np.int64)
        samples = self._locate(epoch, positions)
        lengths = self._lengths(samples)
        samples, lengths = samples[lengths <= self._longest], lengths[lengths <= self._longest]
        if not len(samples):
            return ()
        ties = random_stream(TIES, self._seed, epoch, window).random_raw(len(samples))
        by_length = np.lexsort((ties, lengths))
        slices = cut(lengths[by_length], self._data.batch_unit, self._data.micro_batch_size)
        shuffled = permutation(len(slices), BATCHES, self._seed, epoch, window).tolist()
        return tuple(samples[by_length[slices[number]]] for number in shuffled)

    def from_cursor(self, start: Cursor) -> Iterator[tuple[Samples, Cursor]]:
        """The endless stream from `start` on: each micro-batch and the cursor behind it.

        The next window is planned in a thread while this one is handed out.
        """
        planner = ThreadPoolExecutor(1, "plan")
        try:
            ahead = planner.submit(self.window_batches, start.epoch, start.window)
            while True:
                batches = ahead.result()
                following = self._after(start)
                ahead = planner.submit(self.window_batches, following.epoch, following.window)
                for number in range(start.batch, len(batches)):
                    yield batches[number], start._replace(batch=number + 1)
                start = following
        finally:
            # No waiting for the thread: a generator that was left alone is closed by the garbage collector, which may
            # run inside another thread's start, and threading's locks are taken then.
            planner.shutdown(wait=False)

    def first_epoch(self) -> Iterator[Samples]:
        """Every micro-batch of epoch 0, once."""
        for window in range(self.windows):
            yield from self.window_batches(0, window)

    def _after(self, cursor: Cursor) -> Cursor:
        """Start of the next window."""
        last = cursor.window == self.windows - 1
        return Cursor(cursor.epoch + 1) if last else Cursor(cursor.epoch, cursor.window + 1)

    def _locate(self, epoch: int, positions: Ints) -> Samples:
        samples = np.empty(len(positions), dtype=SAMPLE)
        samples["corpus"], samples["epoch"], samples["position"] = self._mixture.locate(
            epoch, positions
        )
        for corpus, corpus_epoch, here in _groups(samples["corpus"], samples["epoch"]):
            found = self._orders[corpus].locate(corpus_epoch, samples["position"][here])
            samples["shard"][here], samples["sample"][here] = found
        return samples

    def _lengths(self, samples: Samples) -> Ints:
        lengths = np.empty(len(samples), dtype=np.int64)
        for corpus, shard, here in _groups(samples["corpus"], samples["shard"]):
            lengths[here] = self._corpora[corpus].lengths(shard)[samples["sample"][here]]
        return lengths


def _groups(first: Ints, second: Ints) -> Iterator[tuple[int, int, Ints]]:
    """Each pair of values that occurs, and the indices where it does."""
    order = np.lexsort((second, first))
    new = np.flatnonzero(np.diff(first[order]) | np.diff(second[order])) + 1
    for here in np.split(order, new):
        yield int(first[here[0]]), int(second[here[0]]), here
