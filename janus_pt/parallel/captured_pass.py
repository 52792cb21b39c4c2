"""Forward pass, losses and backward pass over a micro-batch as CUDA graphs: two launches, not hundreds.

A graph is a list of kernels with the addresses and sizes that they had when it was recorded. So all
sizes of a batch are among few (`packing.batch.collate`, `for_graphs`), and each combination of them
has a pair of graphs. Its inputs are copied into tensors that stay; its backward pass adds the
parameters' gradients to the optimizer's float32 sums itself.

Dropout's seed is the device's generator's, which a graph reads anew each time it is launched. A graph
has one seed, so dropout is seeded once for the whole pass and not for each layer. What is not recorded
does the same, so a number does not depend on what was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from janus_pt.model.dropout import Seed, seed_layer
from janus_pt.model.layer_numbers import SOURCE_EMBEDDING
from janus_pt.objectives.loss import TrainingModule
from janus_pt.packing.batch import Batch
from janus_pt.packing.buffer import map_leaves
from janus_pt.parallel.gradient_sums import GradientSums

MAX_GRAPHS = 64
"""Pairs of graphs; sizes that come after so many others are not recorded."""


@dataclass(frozen=True)
class Sizes:
    """What the kernels of a pass, and their sizes, depend on."""

    source: int
    slots: int
    num_content: int
    first_predicting: int
    samples: int
    targets: int
    streams: tuple[int, ...]

    @staticmethod
    def of(batch: Batch) -> Sizes:
        """The sizes of a micro-batch."""
        return Sizes(
            batch.source.tokens.shape[1],
            batch.slots.table.shape[1],
            batch.slots.num_content,
            batch.slots.first_predicting,
            len(batch.lengths),
            len(batch.targets),
            tuple(len(rows) for rows in batch.predict.values()),
        )


def can_capture() -> bool:
    """Whether this torch has what `_nodes_on_captured_stream` needs."""
    return hasattr(torch.autograd.graph, "set_override_stale_capture_stream")


class CapturedPass:
    """Runs a module's training passes; called in its place.

    The first micro-batch of each size runs kernel by kernel, which compiles what has to be compiled;
    the second is recorded.
    """

    def __init__(self, module: TrainingModule, sums: GradientSums) -> None:
        self._module = module
        self._sums = sums
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        # Gives the pass a place in autograd's graph, where no parameter is an input.
        self._anchor = torch.zeros((), requires_grad=True)
        self._seen: set[Sizes] = set()
        self._graphs: dict[Sizes, _Graphs] = {}
        # One pool of memory: of two recorded passes one is over before the other begins.
        self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

    def seed_dropout(self, seed: Seed) -> None:
        """Make dropout of the next pass a function of `seed`."""
        self._module.model.seed_dropout(None)
        seed_layer(seed, SOURCE_EMBEDDING)

    def __call__(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """`TrainingModule.forward`."""
        result: tuple[Tensor, Tensor] = _Pass.apply(self, batch, coefficients, self._anchor)
        return result

    def begin(self, batch: Batch, coefficients: Tensor) -> _Graphs | _Eager:
        """The forward pass; the result has the `total` and the `sums`, and does the backward pass."""
        sizes = Sizes.of(batch)
        graphs = self._graphs.get(sizes)
        if graphs is None and self._is_recorded(sizes, batch.targets.device):
            graphs = self._graphs[sizes] = _Graphs(self, batch, coefficients)
        if graphs is None:
            return _Eager(self, batch, coefficients)
        graphs.forward(batch, coefficients)
        return graphs

    def _is_recorded(self, sizes: Sizes, device: torch.device) -> bool:
        """Whether to record a pass of these sizes, which has not been."""
        is_known = sizes in self._seen
        self._seen.add(sizes)
        return is_known and device.type == "cuda" and len(self._graphs) < MAX_GRAPHS

    def compute(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The forward pass, kernel by kernel: total and sums."""
        with torch.enable_grad():
            return self._module.compute(batch, coefficients)

    def differentiate(self, total: Tensor, gradient: Tensor) -> None:
        """The backward pass, kernel by kernel; adds the parameters' gradients to their sums."""
        found = torch.autograd.grad(total, self._parameters, gradient, allow_unused=True)
        for parameter, gradient in zip(self._parameters, found, strict=True):
            if gradient is not None:
                self._sums.take(parameter, gradient)
        self._sums.add()


class _Eager:
    """A pass that is not recorded."""

    def __init__(self, passes: CapturedPass, batch: Batch, coefficients: Tensor) -> None:
        self._passes = passes
        self.total, self.sums = passes.compute(*_copies(batch, coefficients))

    def backward(self, gradient: Tensor) -> None:
        """Add the parameters' gradients to their sums."""
        self._passes.differentiate(self.total, gradient)


class _Graphs:
    """The two graphs of one size, with their inputs and outputs."""

    def __init__(self, passes: CapturedPass, batch: Batch, coefficients: Tensor) -> None:
        self._passes = passes
        inputs = _copies(batch, coefficients)
        self._inputs = _leaves(*inputs)
        # What waits to be added is no part of the graph.
        passes._sums.add()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Only this thread's calls: others pin memory and watch NCCL meanwhile.
        options: dict[str, Any] = {
            "pool": passes._pool,
            "capture_error_mode": "thread_local",
        }
        with torch.cuda.graph(self._forward, **options):
            total, self.sums = passes.compute(*inputs)
        self._gradient = torch.empty_like(total)
        with _nodes_on_captured_stream(), torch.cuda.graph(self._backward, **options):
            passes.differentiate(total, self._gradient)
        self.total = total.detach()

    def forward(self, batch: Batch, coefficients: Tensor) -> None:
        """Fill `total` and `sums`."""
        torch._foreach_copy_(self._inputs, _leaves(batch, coefficients))
        self._forward.replay()

    def backward(self, gradient: Tensor) -> None:
        """Add the parameters' gradients to their sums."""
        self._gradient.copy_(gradient)
        self._backward.replay()
        self._passes._sums.mark(self._passes._parameters)


def _copies(batch: Batch, coefficients: Tensor) -> tuple[Batch, Tensor]:
    """Tensors of a pass's own.

    Also of one that is not recorded: FlexAttention is compiled for tensors that begin a block of
    memory, or for views into one. What is compiled for the first pass of a size must serve the
    second, since nothing can be compiled while kernels are recorded.
    """
    copies: tuple[Batch, Tensor] = map_leaves((batch, coefficients), Tensor, torch.clone)
    return copies


@contextmanager
def _nodes_on_captured_stream() -> Iterator[None]:
    """Let autograd's nodes of the parameters, which DeepSpeed's hooks keep, follow the captured stream.

    They are of the stream on which the hooks were made, and do nothing here: gradients are returned.
    """
    graph: Any = torch.autograd.graph
    graph.set_override_stale_capture_stream(True)
    try:
        yield
    finally:
        graph.set_override_stale_capture_stream(False)


def _leaves(batch: Batch, coefficients: Tensor) -> list[Tensor]:
    """The tensors that a pass reads, as integers of 4 bytes: one kernel copies many."""
    source, slots = batch.source, batch.slots
    found: list[Tensor] = []

    def add(tensor: Tensor) -> None:
        found.append(tensor.flatten().view(torch.int32))

    assert slots.blocks is not None, "graphs are recorded with prepared blocks"
    parts = (source.tokens, source.positions, source.samples, source.blocks)
    losses = (batch.targets, batch.predict, batch.lengths, coefficients)
    map_leaves((*parts, slots.table, slots.blocks, losses), Tensor, add)
    return found


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: CapturedPass, batch: Batch, coefficients: Tensor, anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        begun = ctx.begun = passes.begin(batch, coefficients)
        sums = begun.sums.detach()
        ctx.mark_non_differentiable(sums)
        return begun.total.detach(), sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.begun.backward(gradients[0])
        return None, None, None, None
