"""Building batches ahead, in worker processes that read the samples themselves."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from janus_pt.data.batch_sampler import Samples
from janus_pt.data.corpus import Corpus
from janus_pt.data.files import Damaged
from janus_pt.data.order import sample_rng
from janus_pt.utils.errors import UserError, warn
from janus_pt.utils.processes import end_with_parent

Example = TypeVar("Example")
Batch = TypeVar("Batch")

Prepare = Callable[[Mapping[str, np.ndarray[Any, Any]], np.random.Generator], Example]
Collate = Callable[[list[Example]], Batch]

PREFETCH = 4
"""Micro-batches each worker process keeps ready."""


STAY_S = 30
"""How long a worker goes on when it is told to end: its rank may need batches for the step after which it saves."""


@dataclass(frozen=True)
class _Refused:
    """A `UserError` on its way out of a worker process: as a value, since `DataLoader` would bury its message."""

    message: str


@dataclass(frozen=True)
class Builder(Generic[Example, Batch]):
    """From the samples of a micro-batch to the batch."""

    corpora: Sequence[Corpus]
    seed: int
    prepare: Prepare[Example]
    collate: Collate[Example, Batch]
    skip: bool = False
    """Leave out samples that are damaged (`data.on_error`)."""

    def build(self, samples: Samples) -> Batch:
        """The batch of a micro-batch's samples.

        A sample that is left out has its place in the order all the same: nothing else moves.

        Raises:
            UserError: a shard is missing, cut short or damaged; with `skip`, if no sample of the batch is whole.
        """
        examples = [
            example
            for sample in samples.tolist()
            if (example := self._example(*sample)) is not None
        ]
        if not examples:
            raise UserError(
                "data.on_error: no sample of a micro-batch is whole (the last warnings name them); that is more than "
                "may be left out: copy or build the corpus again, or leave it out of data.train"
            )
        return self.collate(examples)

    def _example(
        self, corpus: int, epoch: int, position: int, shard: int, sample: int
    ) -> Example | None:
        try:
            fields = self.corpora[corpus].read(shard, sample)
        except Damaged as error:
            if not self.skip:
                raise
            _tell(str(error))
            return None
        return self.prepare(fields, sample_rng(self.seed, corpus, epoch, position))

    def __getitem__(self, samples: Samples) -> Batch | _Refused:
        """`build` as `DataLoader` calls it."""
        try:
            return self.build(samples)
        except UserError as error:
            return _Refused(str(error))


@lru_cache(1000)
def _tell(problem: str) -> None:
    """Warn of a sample left out; of a shard that is no good, once in this process."""
    warn(f"left out: {problem}", local=True)


def build_batches(
    builder: Builder[Example, Batch], shares: Iterator[Samples], workers: int
) -> Iterator[Batch]:
    """The batches of `shares` in their order, built by `workers` processes (0: by this one).

    Batches are pinned where there is a CUDA device; a batch type of ours needs a `pin_memory` method for it.

    Raises:
        UserError: from reading, whichever process it happened in.
    """
    loader: DataLoader[Any] = DataLoader(
        builder,  # type: ignore[arg-type]
        sampler=shares,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else each start would draw from the global one, which dropout uses
    )
    for batch in loader:
        if isinstance(batch, _Refused):
            raise UserError(batch.message)
        yield batch


def _context() -> Any:
    """Workers are forked from a server process that has only imported `fork_server`: forking the training process,
    with its threads, device and communicator, is unsafe, and a fresh interpreter for each worker is slow."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["janus_pt.data.fork_server"])
    return context


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Signals are the training process's to handle, though launchers send them to its children as well; when it is
    gone, however it went, so is the worker."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(STAY_S))  # which DataLoader sends, too
    end_with_parent()  # DataLoader's own watch looks at the parent process id: the fork server's
