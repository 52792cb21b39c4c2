"""The endless stream of micro-batches: a pure function of the seed, the corpora and the batch budget.

An epoch of the mixture is read in *windows* of consecutive positions. Inside a window samples of similar length
form micro-batches, which are then shuffled. Steps take consecutive micro-batches, across the borders of windows
and epochs; the number of ranks plays no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from janus_pt.config.schema import DataConfig
from janus_pt.data import files
from janus_pt.data.corpus import Corpus
from janus_pt.data.mixture import Mixture
from janus_pt.data.order import BATCHES, TIES, Ints, SampleOrder, permutation, random_stream
from janus_pt.utils.errors import UserError, warn

SAMPLE = np.dtype([(name, np.int64) for name in ("corpus", "epoch", "position", "shard", "sample")])
"""A sample: its corpus, the epoch of that corpus and the position in it, and where its tokens are stored."""

Samples = np.ndarray[Any, np.dtype[np.void]]


class Cursor(NamedTuple):
    """A position in the stream: the next micro-batch is number `batch` of this window of this epoch."""

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
    slices = []
    start = 0
    for end, length in enumerate(lengths.tolist()):
        # The lengths ascend, so this sample is the longest of the batch, to which all others are padded.
        sample_cost = length if unit == "tokens" else 1
        if (end - start + 1) * sample_cost > size:
            slices.append(slice(start, end))
            start = end
    slices.append(slice(start, len(lengths)))
    return slices


def check_lengths(corpora: Sequence[Corpus], data: DataConfig, max_length: int) -> int:
    """The most tokens a sample may have, such that every batch and the position table can hold it.

    Args:
        max_length: the most tokens of a sequence, bos and eos counted.

    Raises:
        UserError: names the first sample that is longer; with `data.on_error` = "skip", only if all are.
    """
    limit, key = max_length, "model.max_positions"
    if data.batch_unit == "tokens" and data.micro_batch_size < limit:
        limit, key = data.micro_batch_size, "data.micro_batch_size"
    problem = f"more than the {limit} that {key} allows; raise it, or build the corpus with smaller blocks"
    for corpus in corpora:
        # The manifest's bound is mostly low enough; only where it is not are all indices read.
        if corpus.longest > limit:
            _check_corpus(corpus, limit, problem, stop=data.on_error == "stop")
    return limit


def _check_corpus(corpus: Corpus, limit: int, problem: str, stop: bool) -> None:
    """Read all lengths of a corpus. Report the first sample that is too long, or without `stop` how many are."""
    too_long = 0
    for number, shard in enumerate(corpus.manifest.shards):
        lengths = corpus.lengths(number)
        longer = np.flatnonzero(lengths > limit)
        if stop and len(longer):
            sample = longer[0]
            name = files.join(corpus.url, shard.file)
            raise UserError(
                f"{name}: sample {sample} has {lengths[sample]} tokens with bos and eos, {problem}"
            )
        too_long += len(longer)
    if not too_long:
        return
    message = f"{corpus.url}: {too_long} of {corpus.manifest.samples} samples have {problem}"
    # Without a single sample the stream would search for one forever.
    if too_long == corpus.manifest.samples:
        raise UserError(message)
    warn(f"skipped in every epoch: {message}")


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
        sizes = tuple(corpus.manifest.samples for corpus in corpora)
        self._mixture = Mixture(sizes, tuple(weights))
        self._data = data
        self._seed = seed

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return self._mixture.size

    @property
    def windows(self) -> int:
        """Windows of an epoch; the last one may be shorter."""
        return ceil(self.samples / self._data.window)

    def window_batches(self, epoch: int, window: int) -> tuple[Samples, ...]:
        """The micro-batches of a window: a pure function of its arguments. There may be none.

        Samples that are too long are skipped; `check_lengths` accepted them only with `data.on_error` = "skip".
        """
        start = window * self._data.window
        end = min(start + self._data.window, self.samples)
        samples = self._locate(epoch, np.arange(start, end, dtype=np.int64))
        lengths = self._lengths(samples)
        fits = lengths <= self._longest
        samples = samples[fits]
        lengths = lengths[fits]
        if not len(samples):
            return ()
        # Samples of equal length in random order, else the same ones would meet in a batch in every epoch.
        ties = random_stream(TIES, self._seed, epoch, window).random_raw(len(samples))
        by_length = np.lexsort((ties, lengths))
        slices = cut(lengths[by_length], self._data.batch_unit, self._data.micro_batch_size)
        # Shuffled, else the lengths would rise and fall with the step, and the ranks' work with them.
        shuffled = permutation(len(slices), BATCHES, self._seed, epoch, window).tolist()
        return tuple(samples[by_length[slices[number]]] for number in shuffled)

    def from_cursor(self, start: Cursor) -> Iterator[tuple[Samples, Cursor]]:
        """The endless stream from `start` on: each micro-batch and the cursor behind it."""
        # The next window is planned in a thread while this one is used, so that no step waits for it.
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
            # Do not wait for the thread: the garbage collector closes an abandoned generator, and it may run
            # inside another thread's start, which holds the locks that waiting needs.
            planner.shutdown(wait=False)

    def first_epoch(self) -> Iterator[Samples]:
        """Every micro-batch of epoch 0, once."""
        for window in range(self.windows):
            yield from self.window_batches(0, window)

    def _after(self, cursor: Cursor) -> Cursor:
        """Start of the next window."""
        if cursor.window == self.windows - 1:
            return Cursor(cursor.epoch + 1)
        return Cursor(cursor.epoch, cursor.window + 1)

    def _locate(self, epoch: int, positions: Ints) -> Samples:
        """The samples at positions of an epoch of the mixture."""
        samples = np.empty(len(positions), dtype=SAMPLE)
        corpus, corpus_epoch, position = self._mixture.locate(epoch, positions)
        samples["corpus"] = corpus
        samples["epoch"] = corpus_epoch
        samples["position"] = position
        # A window may hold the end of one epoch of a corpus and the beginning of the next.
        for number, epoch_number, indices in _groups(corpus, corpus_epoch):
            order = self._orders[number]
            shards, samples_in_shard = order.locate(epoch_number, position[indices])
            samples["shard"][indices] = shards
            samples["sample"][indices] = samples_in_shard
        return samples

    def _lengths(self, samples: Samples) -> Ints:
        """Tokens of each sample, bos and eos counted."""
        lengths = np.empty(len(samples), dtype=np.int64)
        # Shard by shard, so that each index is opened once: a corpus keeps only some of them in memory.
        for corpus, shard, indices in _groups(samples["corpus"], samples["shard"]):
            lengths[indices] = self._corpora[corpus].lengths(shard)[samples["sample"][indices]]
        return lengths


def _groups(first: Ints, second: Ints) -> Iterator[tuple[int, int, Ints]]:
    """Each pair of values that occurs, and the indices where it does."""
    order = np.lexsort((second, first))
    changes = np.diff(first[order]) | np.diff(second[order])
    starts = np.flatnonzero(changes) + 1
    for indices in np.split(order, starts):
        yield int(first[indices[0]]), int(second[indices[0]]), indices
