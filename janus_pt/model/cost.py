"""What a layer costs in one pass: arithmetic, memory and exchange, each stated beside its forward.

A block's `cost` says what its `forward` computes, what autograd keeps of it, and what tensor-parallel
ranks exchange in it. Plans of memory, traffic, FLOPs and pipeline stages add these up and know no
architecture. Blocks read the sizes off their own parameters, so they must be unsharded; on the meta
device they cost nothing to make.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Workload:
    """Tokens and slots that one or more forward passes compute, padding not counted.

    The four counts are totals over all samples. `predicted_slots` pass the output projection, and
    are all that the last decoder layer computes. The two lengths are means: of the source tokens
    that a source token or slot reads, and of the content slots that a slot reads.
    """

    source_tokens: float
    content_slots: float
    query_slots: float
    predicted_slots: float
    source_length: float = 0.0
    content_length: float = 0.0

    @property
    def slots(self) -> float:
        """All decoder slots."""
        return self.content_slots + self.query_slots


@dataclass(frozen=True)
class Elements:
    """Numbers of tensor elements: `sharded` over tensor-parallel ranks, and `replicated` on all of
    them, unless they share rows."""

    replicated: float = 0.0
    sharded: float = 0.0

    def __add__(self, other: Elements) -> Elements:
        return Elements(self.replicated + other.replicated, self.sharded + other.sharded)

    def on_rank(self, tensor_parallel: int, row_parallel: int = 1) -> float:
        """Elements on one of `tensor_parallel` ranks, `row_parallel` of which share rows."""
        return self.replicated / row_parallel + self.sharded / tensor_parallel


@dataclass(frozen=True)
class AllReduces:
    """`elements` that tensor-parallel ranks sum over the ranks, in `calls` all-reduces.

    Where ranks share rows these are gathered and scattered instead (`planning/traffic.py`).
    """

    elements: float = 0.0
    calls: int = 0

    def __add__(self, other: AllReduces) -> AllReduces:
        return AllReduces(self.elements + other.elements, self.calls + other.calls)


@dataclass(frozen=True)
class Sublayer:
    """A sublayer that can be computed again: its `kind` (`recompute.py`), the multiply-adds of its
    forward pass, and what autograd then need not keep. Its input is kept in any case."""

    kind: str
    multiply_adds: float
    kept: Elements
    dropout_masks: Elements
    log_sum_exp: float
    attention_weights: float
    unjoined_outputs: float


@dataclass(frozen=True)
class Cost:
    """What one layer, or a part of it, costs. Costs of parts add up to the cost of the whole.

    multiply_adds: of the forward pass; the backward pass has twice as many.
    kept: activations that autograd keeps for the backward pass, in the model's precision.
    dropout_masks: elements of which a dropout mask is kept.
    log_sum_exp, attention_weights: kept as well, the first (float32) by fused attention kernels, the
        second where attention is computed step by step. Sharded by heads.
    unjoined_outputs: elements of the heads' outputs, kept as well by fused kernels that compute samples
        side by side: `kept` has them joined to one row. Sharded by heads.
    working: gradients that exist beside `kept` while the backward pass runs.
    layer_input: what is kept of a layer that is recomputed; 0 for layers that never are.
    forward, backward: what tensor-parallel ranks exchange in the two passes: what leaves sharded
        layers, and gradients of what enters them.
    sublayers: those that can be computed again; all that they keep is counted above.
    """

    multiply_adds: float = 0.0
    kept: Elements = Elements()
    dropout_masks: Elements = Elements()
    log_sum_exp: float = 0.0
    attention_weights: float = 0.0
    unjoined_outputs: float = 0.0
    working: Elements = Elements()
    layer_input: float = 0.0
    forward: AllReduces = AllReduces()
    backward: AllReduces = AllReduces()
    sublayers: tuple[Sublayer, ...] = ()

    def recomputable_as(self, kind: str) -> Cost:
        """The same cost, which is one of a sublayer that can be computed again.

        What such a sublayer keeps in full on every rank is its input.
        """
        sublayer = Sublayer(
            kind,
            self.multiply_adds,
            Elements(sharded=self.kept.sharded),
            self.dropout_masks,
            self.log_sum_exp,
            self.attention_weights,
            self.unjoined_outputs,
        )
        return replace(self, sublayers=(*self.sublayers, sublayer))

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            multiply_adds=self.multiply_adds + other.multiply_adds,
            kept=self.kept + other.kept,
            dropout_masks=self.dropout_masks + other.dropout_masks,
            log_sum_exp=self.log_sum_exp + other.log_sum_exp,
            attention_weights=self.attention_weights + other.attention_weights,
            unjoined_outputs=self.unjoined_outputs + other.unjoined_outputs,
            working=self.working + other.working,
            layer_input=self.layer_input + other.layer_input,
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            sublayers=self.sublayers + other.sublayers,
        )


def linear_size(*layers: nn.Module) -> int:
    """Multiply-adds of these linear layers for one row: the elements of their matrices."""
    return sum(layer.get_parameter("weight").numel() for layer in layers)
