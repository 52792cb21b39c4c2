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
"""Seconds a worker continues after SIGTERM: its rank may need batches for the step after which it saves."""
WARNED_PROBLEMS = 1000
"""Problems a process remembers, so as to warn of each once."""


@dataclass(frozen=True)
class _Refused:
    """A `UserError` on its way out of a worker process: as a value, since `DataLoader` would wrap its message."""

    message: str


@dataclass(frozen=True)
class Builder(Generic[Example, Batch]):
    """Turns the samples of a micro-batch into the batch."""

    corpora: Sequence[Corpus]
    seed: int
    prepare: Prepare[Example]
    collate: Collate[Example, Batch]
    skip: bool = False
    """Skip damaged samples (`data.on_error`)."""

    def build(self, samples: Samples) -> Batch:
        """The batch of a micro-batch's samples.

        A skipped sample keeps its position in the order, so that all other samples stay where they are.

        Raises:
            UserError: a shard is missing, cut short or damaged; with `skip`, if no sample of the batch is whole.
        """
        examples = []
        for sample in samples.tolist():
            example = self._example(*sample)
            if example is not None:
                examples.append(example)
        # A rank without a batch would be out of step with the others.
        if not examples:
            raise UserError(
                "data.on_error: no sample of a micro-batch is whole (the last warnings name them); that is more than "
                "may be skipped: copy or build the corpus again, or remove it from data.train"
            )
        return self.collate(examples)

    def _example(
        self, corpus: int, epoch: int, position: int, shard: int, sample: int
    ) -> Example | None:
        """The example of a sample, named by the fields of `SAMPLE`; None if it is skipped."""
        try:
            fields = self.corpora[corpus].read(shard, sample)
        except Damaged as error:
            if not self.skip:
                raise
            _warn_once(str(error))
            return None
        # Seeded by the position, so the noise does not depend on which process builds the batch.
        rng = sample_rng(self.seed, corpus, epoch, position)
        return self.prepare(fields, rng)

    def __getitem__(self, samples: Samples) -> Batch | _Refused:
        """`build` as `DataLoader` calls it."""
        try:
            return self.build(samples)
        except UserError as error:
            return _Refused(str(error))


@lru_cache(WARNED_PROBLEMS)
def _warn_once(problem: str) -> None:
    """Warn of a skipped sample; of a damaged shard, which has the same problem for all samples, once."""
    warn(f"skipped: {problem}", local=True)


def build_batches(
    builder: Builder[Example, Batch], shares: Iterator[Samples], workers: int
) -> Iterator[Batch]:
    """The batches of `shares` in their order, built by `workers` processes (0: by this one).

    Batches are pinned if there is a CUDA device; for this a batch type of ours needs a method `pin_memory`.

    Raises:
        UserError: from reading, whichever process it happened in.
    """
    loader: DataLoader[Any] = DataLoader(
        builder,  # type: ignore[arg-type]
        # An item is a whole micro-batch, so DataLoader neither groups nor collates.
        sampler=shares,
        batch_size=None,
        collate_fn=_identity,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: each start would otherwise draw from the global one, which dropout uses.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, _Refused):
            raise UserError(batch.message)
        yield batch


def _context() -> Any:
    """How workers start: forked from a server process that has only imported `fork_server`.

    Forking the training process, with its threads, device and communicator, is unsafe; a fresh interpreter for each
    worker is slow.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["janus_pt.data.fork_server"])
    return context


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Leave signals to the training process, and end with it, however it ends."""
    # Launchers send these to the children of a rank as well; the rank still needs its workers to save.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # DataLoader sends SIGTERM, too, to end a worker that hangs: so it may delay the end, but not prevent it.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(STAY_S))
    # DataLoader's own watch looks at the parent process id, which here is the fork server's.
    end_with_parent()
