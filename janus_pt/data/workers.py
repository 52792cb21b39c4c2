"""Building batches ahead, in worker processes that read the samples themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from janus_pt.data.batches import Samples
from janus_pt.data.index import Corpus
from janus_pt.data.order import sample_rng
from janus_pt.errors import UserError

Example = TypeVar("Example")
Batch = TypeVar("Batch")

Prepare = Callable[[Mapping[str, np.ndarray[Any, Any]], np.random.Generator], Example]
Collate = Callable[[list[Example]], Batch]

PREFETCH = 4
"""Micro-batches each worker process keeps ready."""


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

    def build(self, samples: Samples) -> Batch:
        """The batch of a micro-batch's samples.

        Raises:
            UserError: a shard is missing, cut short or damaged.
        """
        return self.collate([self._example(*sample) for sample in samples.tolist()])

    def _example(self, corpus: int, epoch: int, position: int, shard: int, sample: int) -> Example:
        fields = self.corpora[corpus].read(shard, sample)
        return self.prepare(fields, sample_rng(self.seed, corpus, epoch, position))

    def __getitem__(self, samples: Samples) -> Batch | _Refused:
        """`build` as `DataLoader` calls it."""
        try:
            return self.build(samples)
        except UserError as error:
            return _Refused(str(error))


def built(builder: Builder[Example, Batch], shares: Iterator[Samples], workers: int) -> Iterator[Batch]:
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
    """Workers are forked from a server process that has only imported this module: forking the training process,
    with its threads, device and communicator, is unsafe, and a fresh interpreter for each worker is slow."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Interrupts are the training process's to handle, and when it is gone, however it went, so is the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # DataLoader's own watch looks at the parent process id, which here is the fork server's.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
