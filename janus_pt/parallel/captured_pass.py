"""The model's forward and backward pass over a micro-batch as CUDA graphs: a launch each, not hundreds.

A graph is a list of kernels with the addresses and sizes that they had when it was recorded. So rows
have one of few lengths (`packing.padded.round_to_graph_step`), and each combination of them has a pair
of graphs. Its inputs are copied into tensors that stay; its backward pass adds the parameters'
gradients to the optimizer's float32 sums itself. The losses follow outside: the number of their rows
differs from batch to batch.

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
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.buffer import map_leaves
from janus_pt.packing.slots import Slots, Source
from janus_pt.parallel.gradient_sums import GradientSums

MAX_GRAPHS = 64
"""Pairs of graphs; sizes that come after so many others are not recorded."""

Outputs = tuple[Tensor, Tensor]
"""The encoder's output `[1, source, hidden]` and the decoder's `[1, slots, hidden]`; or their gradients."""


@dataclass(frozen=True)
class Sizes:
    """What the kernels of a pass, and their sizes, depend on."""

    source: int
    slots: int
    num_content: int
    first_predicting: int

    @staticmethod
    def of(source: Source, slots: Slots) -> Sizes:
        """The sizes of a micro-batch."""
        return Sizes(
            source.tokens.shape[1],
            slots.table.shape[1],
            slots.num_content,
            slots.first_predicting,
        )


def can_capture() -> bool:
    """Whether this torch has what `_nodes_on_captured_stream` needs."""
    return hasattr(torch.autograd.graph, "set_override_stale_capture_stream")


class CapturedPass:
    """Runs the model's training passes; called in place of the model.

    The first micro-batch of each size runs kernel by kernel, which compiles what has to be compiled;
    the second is recorded.
    """

    def __init__(self, model: JanusTransformer, sums: GradientSums) -> None:
        self._model = model
        self._sums = sums
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # Gives the pass a place in autograd's graph, where no parameter is an input.
        self._anchor = torch.zeros((), requires_grad=True)
        self._seen: set[Sizes] = set()
        self._graphs: dict[Sizes, _Graphs] = {}
        # One pool of memory: of two recorded passes one is over before the other begins.
        self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

    def seed_dropout(self, seed: Seed) -> None:
        """Make dropout of the next pass a function of `seed`."""
        self._model.seed_dropout(None)
        seed_layer(seed, SOURCE_EMBEDDING)

    def __call__(self, source: Source, slots: Slots) -> tuple[Tensor, Tensor]:
        """`JanusTransformer.forward`."""
        if not (torch.is_grad_enabled() and self._model.training):
            return self._model(source, slots)
        encoder_out, hidden = _Pass.apply(self, source, slots, self._anchor)
        return hidden, self._model.length_logits(encoder_out, source)

    def begin(self, source: Source, slots: Slots) -> _Graphs | _Eager:
        """The forward pass; the result has its `outputs`, and does the backward pass."""
        sizes = Sizes.of(source, slots)
        graphs = self._graphs.get(sizes)
        if graphs is None and self._is_recorded(sizes, source.tokens.device):
            graphs = self._graphs[sizes] = _Graphs(self, source, slots)
        if graphs is None:
            return _Eager(self, source, slots)
        graphs.forward(source, slots)
        return graphs

    def _is_recorded(self, sizes: Sizes, device: torch.device) -> bool:
        """Whether to record a pass of these sizes, which has not been."""
        is_known = sizes in self._seen
        self._seen.add(sizes)
        return is_known and device.type == "cuda" and len(self._graphs) < MAX_GRAPHS

    def compute(self, source: Source, slots: Slots) -> Outputs:
        """The forward pass, kernel by kernel."""
        with torch.enable_grad():
            encoder_out = self._model.encode(source)
            return encoder_out, self._model.decode(slots, encoder_out, source)

    def differentiate(self, outputs: Outputs, gradients: Outputs) -> None:
        """The backward pass, kernel by kernel; adds the parameters' gradients to their sums."""
        # A frozen encoder's output has no gradient.
        pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
        roots, root_gradients = zip(*pairs, strict=True)
        found = torch.autograd.grad(roots, self._parameters, root_gradients, allow_unused=True)
        for parameter, gradient in zip(self._parameters, found, strict=True):
            if gradient is not None:
                self._sums.take(parameter, gradient)
        self._sums.add()


class _Eager:
    """A pass that is not recorded."""

    def __init__(self, passes: CapturedPass, source: Source, slots: Slots) -> None:
        self._passes = passes
        self.outputs = passes.compute(source, slots)

    def backward(self, gradients: Outputs) -> None:
        """Add the parameters' gradients to their sums."""
        self._passes.differentiate(self.outputs, gradients)


class _Graphs:
    """The two graphs of one size, with their inputs and outputs."""

    def __init__(self, passes: CapturedPass, source: Source, slots: Slots) -> None:
        self._passes = passes
        self._source, self._slots = map_leaves((source, slots), Tensor, torch.clone)
        self._inputs = _leaves(self._source, self._slots)
        # What waits to be added is no part of the graph.
        passes._sums.add()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Only this thread's calls: others pin memory and watch NCCL meanwhile.
        options: dict[str, Any] = {
            "pool": passes._pool,
            "capture_error_mode": "thread_local",
        }
        with torch.cuda.graph(self._forward, **options):
            outputs = passes.compute(self._source, self._slots)
        self._gradients: Outputs = (torch.empty_like(outputs[0]), torch.empty_like(outputs[1]))
        with _nodes_on_captured_stream(), torch.cuda.graph(self._backward, **options):
            passes.differentiate(outputs, self._gradients)
        self.outputs: Outputs = (outputs[0].detach(), outputs[1].detach())

    def forward(self, source: Source, slots: Slots) -> None:
        """Fill `outputs`."""
        torch._foreach_copy_(self._inputs, _leaves(source, slots))
        self._forward.replay()

    def backward(self, gradients: Outputs) -> None:
        """Add the parameters' gradients to their sums."""
        torch._foreach_copy_(self._gradients, gradients)
        self._backward.replay()
        self._passes._sums.mark(self._passes._parameters)


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


def _leaves(source: Source, slots: Slots) -> list[Tensor]:
    """The tensors that block masks and embeddings read, as integers of 4 bytes: one kernel copies all."""
    found: list[Tensor] = []

    def add(tensor: Tensor) -> None:
        found.append(tensor.flatten().view(torch.int32))

    assert slots.blocks is not None, "graphs are recorded with prepared blocks"
    parts = (source.tokens, source.positions, source.samples, source.blocks)
    map_leaves((*parts, slots.table, slots.blocks), Tensor, add)
    return found


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: CapturedPass, source: Source, slots: Slots, anchor: Tensor
    ) -> Outputs:
        ctx.begun = passes.begin(source, slots)
        encoder_out, hidden = ctx.begun.outputs
        return encoder_out.detach(), hidden.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.begun.backward(gradients)
        return None, None, None, None
