"""The batches one rank trains and validates on, built ahead by worker processes."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Any, Generic

from janus_pt.config.schema import DataConfig
from janus_pt.data.batch_sampler import BatchStream, Cursor, Samples
from janus_pt.data.corpus import Corpus, open_corpus
from janus_pt.data.workers import Batch, Builder, Collate, Example, Prepare, build_batches
from janus_pt.utils.errors import UserError

MOST_OPEN = 256
"""Shards of a corpus that a process holds open: some way below the usual limit on open files."""
VALIDATION_SEED = 0
"""Every validation reads the same samples with the same noise."""


class TrainLoader(Generic[Example, Batch]):
    """This rank's batches, step after step, without end.

    A step is `micro_batches_per_step` consecutive micro-batches of the global stream; rank r of D gets those whose
    number within the step is r modulo D. The state says what has been handed out, whatever lies ready in the
    worker processes; any number of ranks and workers goes on from it with the same global sequence.
    """

    def __init__(
        self,
        data: DataConfig,
        prepare: Prepare[Example],
        collate: Collate[Example, Batch],
        *,
        seed: int,
        max_length: int,
        micro_batches_per_step: int,
        rank: int,
        ranks: int,
    ) -> None:
        """Open the corpora.

        Args:
            prepare: from a sample's token ids by field and its generator to an example.
            collate: from the examples of a micro-batch to a batch. Both run in worker processes, so they must be
                importable: module-level functions, or `functools.partial` of one.
            max_length: the most tokens of a sequence, bos and eos counted (`model.max_positions`).
            rank, ranks: this one's number, and how many there are, of the data-parallel ranks.

        Raises:
            UserError: a corpus is missing or damaged, or has a sample that fits no batch.
        """
        assert micro_batches_per_step % ranks == 0 and rank < ranks
        self.corpora = corpora = [_open(corpus.path, data) for corpus in data.train]
        _check_alike(corpora)
        self._stream = BatchStream(
            corpora, [corpus.weight for corpus in data.train], data, seed, max_length
        )
        self._builder = Builder(corpora, seed, prepare, collate, skip=data.on_error == "skip")
        self._workers = data.num_workers
        self._rank, self._ranks, self._step_size = rank, ranks, micro_batches_per_step
        self._settings = _settings(corpora, data, seed)
        self._cursor = Cursor()
        self._samples = 0

    @property
    def samples_per_epoch(self) -> int:
        """Samples of an epoch, over all ranks."""
        return self._stream.samples

    @property
    def samples(self) -> int:
        """Samples handed out, over all ranks; those left out because they are damaged are among them."""
        return self._samples

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides the global sequence: corpora, weights, seed and batch budget."""
        return hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()

    def __iter__(self) -> Iterator[list[Batch]]:
        """This rank's batches of each step, from the state on. The state moves on as a step is handed out.

        Closing the iterator ends the worker processes.

        Raises:
            UserError: a shard is missing, cut short or damaged.
        """
        behind: deque[tuple[Cursor, int]] = deque()
        batches = build_batches(self._builder, self._shares(behind), self._workers)
        while True:
            mine = list(islice(batches, self._step_size // self._ranks))
            self._cursor, samples = behind.popleft()
            self._samples += samples
            yield mine

    def _shares(self, behind: deque[tuple[Cursor, int]]) -> Iterator[Samples]:
        """This rank's micro-batches; the state after each step is put `behind` as its first one is given out."""
        stream = self._stream.from_cursor(self._cursor)
        while True:
            step = list(islice(stream, self._step_size))
            behind.append((step[-1][1], sum(len(samples) for samples, _ in step)))
            yield from (samples for samples, _ in step[self._rank :: self._ranks])

    def samples_of_step(self, state: Mapping[str, Any]) -> list[str]:
        """Names (path of the shard, number in it) of the samples of all ranks that the step after a state reads."""
        stream = self._stream.from_cursor(Cursor(state["epoch"], state["window"], state["batch"]))
        names = []
        for batch, _ in islice(stream, self._step_size):
            for corpus, _, _, shard, sample in batch.tolist():
                names.append(f"{self.corpora[corpus].files.name(shard)}:{sample}")
        return names

    def state_dict(self) -> dict[str, Any]:
        """What has been handed out, over all ranks, and the settings it depends on. JSON types only."""
        return {**self._settings, **self._cursor._asdict(), "samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, in iterators made from now on. Seeks; nothing is read again.

        Raises:
            UserError: the corpora or a setting that decides the global sequence are not those of the state.
        """
        changed = [key for key, value in self._settings.items() if state.get(key) != value]
        if changed:
            told = ", ".join(
                f"{CONFIG_KEYS[key]} (was {state.get(key)}, is {self._settings[key]})"
                for key in changed
            )
            raise UserError(
                f"the checkpoint was reading other data: {told}; restore what it had, or start a new run"
            )
        self._cursor = Cursor(state["epoch"], state["window"], state["batch"])
        self._samples = state["samples"]


CONFIG_KEYS = {
    "seed": "run.seed",
    "fingerprint": "the content of data.train",
    "weights": "the weights of data.train",
    "batch_unit": "data.batch_unit",
    "micro_batch_size": "data.micro_batch_size",
    "window_size": "data.window",
    "shuffle_shards": "data.shuffle_shards",
    "on_error": "data.on_error",
}


def _open(url: str, data: DataConfig) -> Corpus:
    """The corpus, holding the shards that a window touches; it may reach over the border of two groups of them."""
    corpus = open_corpus(url, data.cache_dir)
    touched = 2 * data.shuffle_shards + ceil(data.window / corpus.counts.mean())
    return Corpus(corpus.files, keep_open=min(touched, MOST_OPEN))


def _check_alike(corpora: Sequence[Corpus]) -> None:
    first = corpora[0]
    for other in corpora[1:]:
        if other.manifest.tokenizer_hashes != first.manifest.tokenizer_hashes:
            raise UserError(
                f"data.train: {first.url} and {other.url} were made with different tokenizers; take one"
            )
        if other.manifest.fields != first.manifest.fields:
            raise UserError(
                f"data.train: {first.url} and {other.url} are of different kinds (fields of the samples)"
            )


def _settings(corpora: Sequence[Corpus], data: DataConfig, seed: int) -> dict[str, Any]:
    """What the global sequence depends on, by the keys of `CONFIG_KEYS`."""
    return {
        "seed": seed,
        "fingerprint": [corpus.manifest.fingerprint[:16] for corpus in corpora],
        "weights": [corpus.weight for corpus in data.train],
        "batch_unit": data.batch_unit,
        "micro_batch_size": data.micro_batch_size,
        "window_size": data.window,
        "shuffle_shards": data.shuffle_shards,
        "on_error": data.on_error,
    }


def valid_batches(
    data: DataConfig,
    prepare: Prepare[Example],
    collate: Collate[Example, Batch],
    *,
    max_length: int,
    rank: int,
    ranks: int,
) -> Iterator[Batch | None]:
    """This rank's batches of `data.valid`: every sample once, always in the same batches with the same noise.

    All ranks get equally many; where batches run out, None. Built in this process.

    Raises:
        UserError: the corpus is missing or damaged, or has a sample that fits no batch.
    """
    assert data.valid is not None
    corpus = _open(data.valid, data)
    stream = BatchStream([corpus], [1.0], data, VALIDATION_SEED, max_length)
    builder = Builder([corpus], VALIDATION_SEED, prepare, collate, skip=data.on_error == "skip")
    batches = stream.first_epoch()
    while group := list(islice(batches, ranks)):
        yield builder.build(group[rank]) if rank < len(group) else None
