"""The batches on which one rank trains and validates, built ahead by worker processes.

The state of the data is a `Cursor` (epoch, window, batch) and a count of samples: the order is a pure function of the
settings and the position, so to resume is to seek, on any number of ranks and workers. The stream has no end, so no
rank can meet it before the others.
"""

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
"""Shards of a corpus that a process holds open at most: well below the usual limit on open files, 1,024."""
VALIDATION_SEED = 0
"""Every validation reads the same samples with the same noise."""


class TrainLoader(Generic[Example, Batch]):
    """This rank's batches, step after step, without end.

    A step is `micro_batches_per_step` consecutive micro-batches of the global stream; rank r of D gets the ones whose
    number within the step is r modulo D. The state covers the batches handed out, not those that worker processes
    hold ready; any number of ranks and workers continues from it with the same global sequence.
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
            rank, ranks: number of this data-parallel rank, and how many there are.

        Raises:
            UserError: a corpus is missing or damaged, or has a sample that fits no batch.
        """
        assert micro_batches_per_step % ranks == 0 and rank < ranks
        self.corpora = [_open(corpus.path, data) for corpus in data.train]
        _check_compatible(self.corpora)
        weights = [corpus.weight for corpus in data.train]
        self._stream = BatchStream(self.corpora, weights, data, seed, max_length)
        skip = data.on_error == "skip"
        self._builder = Builder(self.corpora, seed, prepare, collate, skip)
        self._workers = data.num_workers
        self._rank = rank
        self._ranks = ranks
        self._step_size = micro_batches_per_step
        self._settings = _settings(self.corpora, data, seed)
        self._cursor = Cursor()
        self._samples = 0

    @property
    def samples_per_epoch(self) -> int:
        """Samples of an epoch, over all ranks."""
        return self._stream.samples

    @property
    def samples(self) -> int:
        """Samples handed out, over all ranks; skipped ones (damaged) are counted."""
        return self._samples

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the global sequence: corpora, weights, seed and batch budget."""
        content = json.dumps(self._settings, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def __iter__(self) -> Iterator[list[Batch]]:
        """This rank's batches of each step, from the state on. The state advances as a step is handed out.

        Closing the iterator ends the worker processes.

        Raises:
            UserError: a shard is missing, cut short or damaged.
        """
        # Filled by `_shares`, which is steps ahead of this loop by what the workers hold ready.
        steps_ahead: deque[tuple[Cursor, int]] = deque()
        batches = build_batches(self._builder, self._shares(steps_ahead), self._workers)
        micro_batches = self._step_size // self._ranks
        while True:
            step = list(islice(batches, micro_batches))
            # Before the step is handed out: a checkpoint after it must not read it again.
            self._cursor, samples = steps_ahead.popleft()
            self._samples += samples
            yield step

    def _shares(self, steps_ahead: deque[tuple[Cursor, int]]) -> Iterator[Samples]:
        """This rank's micro-batches; appends each step's end and samples before its first micro-batch."""
        stream = self._stream.from_cursor(self._cursor)
        while True:
            # Every rank plans the whole step, so no rank needs to ask another where the step ends.
            step = list(islice(stream, self._step_size))
            _, end = step[-1]
            steps_ahead.append((end, sum(len(samples) for samples, _ in step)))
            for samples, _ in step[self._rank :: self._ranks]:
                yield samples

    def samples_of_step(self, state: Mapping[str, Any]) -> list[str]:
        """Names (path of the shard, number in it) of the samples of all ranks that the step after a state reads."""
        stream = self._stream.from_cursor(_cursor_of(state))
        names = []
        for batch, _ in islice(stream, self._step_size):
            for corpus, _, _, shard, sample in batch.tolist():
                names.append(f"{self.corpora[corpus].files.name(shard)}:{sample}")
        return names

    def state_dict(self) -> dict[str, Any]:
        """The position of the next step, the same on all ranks, and the settings it depends on. JSON types only."""
        return {**self._settings, **self._cursor._asdict(), "samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, in iterators made from now on. Seeks; nothing is read again.

        Raises:
            UserError: the corpora or a setting that decides the global sequence differ from the state's.
        """
        changed = []
        for key, value in self._settings.items():
            if state.get(key) != value:
                changed.append(f"{CONFIG_KEYS[key]} (was {state.get(key)}, is {value})")
        # With other settings the same three integers would be another position.
        if changed:
            raise UserError(
                f"the checkpoint was reading other data: {', '.join(changed)}; "
                "restore what it had, or start a new run"
            )
        self._cursor = _cursor_of(state)
        self._samples = state["samples"]


def _cursor_of(state: Mapping[str, Any]) -> Cursor:
    return Cursor(state["epoch"], state["window"], state["batch"])


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
"""The configuration's name of each setting that decides the global sequence."""


def _open(url: str, data: DataConfig) -> Corpus:
    """The corpus, holding as many shards open as a window touches."""
    corpus = open_corpus(url, data.cache_dir)
    # A window may begin in one group of shards and end in another; a long one touches whole groups between.
    between = ceil(data.window / corpus.counts.mean())
    touched = 2 * data.shuffle_shards + between
    return Corpus(corpus.files, keep_open=min(touched, MOST_OPEN))


def _check_compatible(corpora: Sequence[Corpus]) -> None:
    """Raise `UserError` unless all corpora have the same tokenizers and fields."""
    first = corpora[0]
    for other in corpora[1:]:
        if other.manifest.tokenizer_hashes != first.manifest.tokenizer_hashes:
            raise UserError(
                f"data.train: {first.url} and {other.url} were made with different tokenizers; "
                "build both with the same one"
            )
        if other.manifest.fields != first.manifest.fields:
            raise UserError(
                f"data.train: {first.url} and {other.url} are of different kinds (fields of the samples)"
            )


def _settings(corpora: Sequence[Corpus], data: DataConfig, seed: int) -> dict[str, Any]:
    """The settings that decide the global sequence, by the keys of `CONFIG_KEYS`."""
    return {
        "seed": seed,
        # 16 digits are enough to tell corpora apart, and readable in a message.
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

    All ranks get the same number, since all take part in each step of the validation: a rank for which the last
    group has no batch gets None. Built in this process.

    Raises:
        UserError: the corpus is missing or damaged, or has a sample that fits no batch.
    """
    assert data.valid is not None
    corpus = _open(data.valid, data)
    stream = BatchStream([corpus], [1.0], data, VALIDATION_SEED, max_length)
    skip = data.on_error == "skip"
    builder = Builder([corpus], VALIDATION_SEED, prepare, collate, skip)
    batches = stream.first_epoch()
    while group := list(islice(batches, ranks)):
        if rank < len(group):
            yield builder.build(group[rank])
        else:
            yield None
