"""ZeRO-1 in bfloat16: each rank gets the sum of the gradients that it updates with, and of no others.

DeepSpeed's bfloat16 optimizer all-reduces all gradients behind the backward pass. Here they go to the
ranks that keep them, which is half as many bytes, and they leave while the backward pass goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch import Tensor

from janus_pt.parallel import owners


@dataclass
class Chunk:
    """Neighbouring gradients: elements `[start, stop)` of a flat tensor of sums, `flat` by number.

    `last` is the number of its parameter that the backward pass comes to last, `missing` how many
    of its `size` gradients are not complete.
    """

    flat: int
    start: int
    stop: int
    last: int
    size: int
    missing: int


class GradientShares:
    """Sums over data-parallel ranks of the shares of DeepSpeed's flat gradients."""

    def __init__(self, engine: Any, dtype: torch.dtype, captured: bool = False) -> None:
        """`dtype` is the arithmetic of the sums (`parallel.gradient_reduce_dtype`)."""
        optimizer = engine.optimizer
        self._dtype = dtype
        self._is_last_backward = engine.is_gradient_accumulation_boundary
        self._flats: list[Tensor] = optimizer.fp32_groups_gradients_flat
        self._shares: list[Tensor] = optimizer.fp32_groups_gradient_flat_partition
        self._group: dist.ProcessGroup = optimizer.real_dp_process_group[0]
        self._ranks = dist.get_world_size(self._group)
        self._rank = dist.get_rank(self._group)
        is_pipeline = isinstance(engine, PipelineEngine)
        self._overlaps = owners.leave_early(self._ranks, is_pipeline, captured)
        order = {id(p): number for number, p in enumerate(engine.module.parameters())}
        numbers = [[order[id(p)] for p in group] for group in optimizer.bf16_groups]
        self._chunks = make_chunks(optimizer.fp32_groups_gradients, numbers)
        self._chunk_of = {
            id(gradient): chunk
            for flat, gradients in enumerate(optimizer.fp32_groups_gradients)
            for gradient in gradients
            for chunk in self._chunks
            if chunk.flat == flat and chunk.start <= gradient.storage_offset() < chunk.stop
        }
        self._sent = 0
        """Chunks that have left in this step. All ranks send all chunks, in the same order."""
        self._pending: list[tuple[Any, Tensor, Tensor]] = []

    def complete(self, gradients: Sequence[Tensor]) -> None:
        """Note that these sums, of `fp32_groups_gradients`, are complete if this backward pass is the last."""
        if self._ranks == 1 or not self._overlaps or not self._is_last_backward():
            return
        for gradient in gradients:
            self._chunk_of[id(gradient)].missing -= 1
        # A rank may lack a gradient that others have. It sends later, but in the same order.
        while self._sent < len(self._chunks) and not self._chunks[self._sent].missing:
            self._send(self._chunks[self._sent])

    def reduce(self, grads: None = None, elements_per_buffer: int = 0) -> None:
        """Average this rank's shares over the ranks, all of which take part; others are left undefined.

        In the place of DeepSpeed's `buffered_allreduce_fallback`, hence the arguments.
        """
        if self._ranks == 1:
            return
        if self._overlaps:
            for chunk in self._chunks[self._sent :]:
                self._send(chunk)
            for work, total, own in self._pending:
                work.wait()
                if total is not own:
                    own.copy_(total)
            for chunk in self._chunks:
                chunk.missing = chunk.size
            self._sent, self._pending = 0, []
        else:
            for flat, share in zip(self._flats, self._shares, strict=True):
                total = torch.empty_like(share, dtype=self._dtype)
                dist.reduce_scatter_tensor(total, flat.to(self._dtype), group=self._group)
                share.copy_(total)
        for share in self._shares:
            share.div_(self._ranks)

    def _send(self, chunk: Chunk) -> None:
        self._sent += 1
        flat = self._flats[chunk.flat]
        for owner, piece in self._by_owner(flat, chunk):
            total = piece.to(self._dtype)
            destination = dist.get_global_rank(self._group, owner)
            work = dist.reduce(total, destination, group=self._group, async_op=True)
            # Only the owner's piece becomes the sum. Without a copy it is summed in place.
            self._pending.append((work, total, piece if owner == self._rank else total))

    def _by_owner(self, flat: Tensor, chunk: Chunk) -> Iterator[tuple[int, Tensor]]:
        """The parts of a chunk by the rank that keeps them."""
        share = flat.numel() // self._ranks
        for owner in range(chunk.start // share, (chunk.stop - 1) // share + 1):
            start = max(chunk.start, owner * share)
            stop = min(chunk.stop, (owner + 1) * share)
            yield owner, flat[start:stop]

    def own(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """What this rank keeps of these sums, of `fp32_groups_gradients`."""
        bounds = {flat.untyped_storage().data_ptr(): flat.numel() for flat in self._flats}
        parts = []
        for gradient in gradients:
            share = bounds[gradient.untyped_storage().data_ptr()] // self._ranks
            first = gradient.storage_offset()
            start = max(first, self._rank * share)
            stop = min(first + gradient.numel(), (self._rank + 1) * share)
            if start < stop:
                parts.append(gradient.flatten()[start - first : stop - first])
        return parts

    def norm(self, own: Sequence[Tensor]) -> Tensor:
        """The norm of what all ranks' parts have together, `[1]`; all take part."""
        squares = self._flats[0].new_zeros(1)
        if own:
            squares += torch.stack(torch._foreach_norm(list(own))).square().sum()
        dist.all_reduce(squares, group=self._group)
        return squares.sqrt()

    @property
    def are_all(self) -> bool:
        """Whether this rank keeps everything."""
        return self._ranks == 1

    @property
    def tensors(self) -> list[Tensor]:
        """What this rank keeps of each flat tensor."""
        return self._shares


def make_chunks(
    gradients: Sequence[Sequence[Tensor]], numbers: Sequence[Sequence[int]]
) -> list[Chunk]:
    """Cut flat tensors, each of `gradients` one behind the other, into chunks, in the order in which they leave.

    Args:
        numbers: of the parameters that the gradients belong to; a backward pass goes from the last to
            the first.
    """
    chunks = []
    for flat, (views, order) in enumerate(zip(gradients, numbers, strict=True)):
        chunk: Chunk | None = None
        for view, number in zip(reversed(views), reversed(order), strict=True):
            start = int(view.storage_offset())
            if chunk is None or chunk.stop - chunk.start >= owners.CHUNK_ELEMENTS:
                chunk = Chunk(flat, start, start + view.numel(), number, 0, 0)
                chunks.append(chunk)
            chunk.start, chunk.last = start, min(chunk.last, number)
            chunk.size += 1
            chunk.missing += 1
    return sorted(chunks, key=lambda chunk: -chunk.last)
