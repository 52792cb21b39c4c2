"""What a step trains on, counted: rows of the loss terms, and sizes of the batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from janus_pt.model.cost import Workload
from janus_pt.objectives.coefficients import term_rows
from janus_pt.objectives.fused_loss import Terms
from janus_pt.packing.batch import Batch
from janus_pt.packing.transfer import to_device
from janus_pt.planning.flops import CONTENT_READ


@dataclass(frozen=True)
class Sizes:
    """Sizes of batches, without padding."""

    source_tokens: float
    content_slots: float
    query_slots: float
    predicted_slots: float
    target_tokens: float
    sentences: float


SIZE_NAMES = tuple(field.name for field in fields(Sizes))


@dataclass(frozen=True)
class Counts:
    """Rows of every loss term, and `Sizes`, on the device.

    `values` holds both, float64 `[terms + sizes]`, so that one all-reduce adds up all of them. A
    checkpoint stores it as a list.
    """

    values: Tensor

    @classmethod
    def zeros(cls, num_terms: int, device: torch.device) -> Counts:
        """Counts of nothing, for `num_terms` loss terms, the length's included."""
        return cls(torch.zeros(num_terms + len(SIZE_NAMES), dtype=torch.float64, device=device))

    @property
    def rows(self) -> Tensor:
        """Rows of every loss term `[terms]`, the length's last."""
        return self.values[: -len(SIZE_NAMES)]

    @property
    def target_tokens(self) -> Tensor:
        """Target tokens, a scalar on the device."""
        # By slicing, not by reading: the host does not wait.
        return self._sizes[SIZE_NAMES.index("target_tokens")]

    @property
    def _sizes(self) -> Tensor:
        return self.values[-len(SIZE_NAMES) :]

    def sizes(self) -> Sizes:
        """The sizes as numbers. Waits for the device."""
        return Sizes(*self._sizes.tolist())

    def __add__(self, other: Counts) -> Counts:
        """Counts of both together."""
        return Counts(self.values + other.values)

    def __sub__(self, other: Counts) -> Counts:
        """Counts of what came after `other`."""
        return Counts(self.values - other.values)


def batch_sizes(batch: Batch) -> Sizes:
    """Sizes of one batch. It must be on the CPU, where counting waits for nothing."""
    real = batch.slots.samples >= 0
    content_slots = int(real[:, : batch.slots.num_content].sum())
    return Sizes(
        source_tokens=int((batch.source.samples >= 0).sum()),
        content_slots=content_slots,
        query_slots=int(real.sum()) - content_slots,
        predicted_slots=sum(batch.counts.predicted.values()),
        target_tokens=batch.counts.targets,
        sentences=batch.counts.samples,
    )


def workload(sizes: Sizes, draws: int) -> Workload:
    """What the model computes for batches of these sizes.

    Args:
        draws: how often each sample stands in a row (`ObjectiveConfig.draws`).
    """
    sentences = draws * max(sizes.sentences, 1.0)
    return Workload(
        source_tokens=sizes.source_tokens,
        content_slots=sizes.content_slots,
        query_slots=sizes.query_slots,
        predicted_slots=sizes.predicted_slots,
        source_length=sizes.source_tokens / sentences,
        content_length=CONTENT_READ * sizes.content_slots / sentences,
    )


def global_counts(batches: Iterable[Batch], terms: Terms, device: torch.device) -> Counts:
    """Counts over the `batches` of all data-parallel ranks; all ranks take part.

    The tensor-parallel ranks and the stages of one pipeline read the same batches, so these count
    once.
    """
    # The row of zeros stands for a rank that has no batch.
    counted: list[list[float]] = [[0] * (len(terms.names) + 1 + len(SIZE_NAMES))]
    for batch in batches:
        counted.append([*term_rows(batch, terms), *astuple(batch_sizes(batch))])
    # Counts are exact in float64 up to 2**53, so the order of adding does not matter.
    values = to_device(torch.tensor(counted, dtype=torch.float64).sum(0), device)
    dist.all_reduce(values, group=parallel_state.get_data_parallel_group())
    return Counts(values)
