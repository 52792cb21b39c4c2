"""What an objective is made of. Each module of this folder has one, `OBJECTIVE`;
`janus_pt/objectives` lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from torch import Tensor

from janus_pt.config.objectives import OBJECTIVES as ROWS
from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.fused_loss import Terms, VocabShard
from janus_pt.packing.alignment import Alignment
from janus_pt.packing.batch import Batch
from janus_pt.packing.example import Example, IntArray
from janus_pt.packing.slots import Slots


@dataclass(frozen=True)
class MaskedPair:
    """One pair with its noise: what an example is made of.

    source, target: token ids with bos and eos; masked: sorted positions of the target, neither bos
    nor eos; chosen: what the objective's `sample_noise` returned, empty without one."""

    source: IntArray
    target: IntArray
    masked: IntArray
    chosen: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class SlotCounts:
    """Mean numbers of a sample's decoder slots: contents and queries of each of the two segments
    (`CAUSAL`, `MASKED` of `packing.slots`), and the rows that pass the output projection, over all
    streams."""

    causal_content: float = 0
    causal_queries: float = 0
    masked_content: float = 0
    masked_queries: float = 0
    predicted: float = 0


def configured_weights(config: ObjectiveConfig) -> list[float]:
    """The weights that the objective's row names, and the length's last (0 where it has none)."""
    names = [name for name in ROWS[config.name].weights if name != "length"]
    return [*(getattr(config, name) for name in names), config.length]


BeforeDecode = Callable[[JanusTransformer, Batch, Tensor, VocabShard], Slots]
"""(model, batch, encoder output, vocabulary shard) -> the slots to decode."""


AlignmentLoss = Callable[[Tensor, Tensor, Alignment, VocabShard], Tensor]
"""(hidden states of the aligned stream's slots, output projection, alignment, vocabulary shard) -> the
sum over samples of the loss, a scalar."""


@dataclass(frozen=True)
class Objective:
    """A layout of slots, and a weighted sum of loss terms over them."""

    terms: Callable[[ObjectiveConfig], Terms]
    """The terms over slots. A term of weight 0 is reported but not trained on."""
    example: Callable[[MaskedPair, ModelConfig, ObjectiveConfig], Example]
    """The slots of a pair, and what they predict; `predict` in the order of `terms.streams`."""
    expected_slots: Callable[[int, float, ModelConfig, ObjectiveConfig], SlotCounts]
    """(target tokens with bos and eos, mean of its masked ones, …) -> mean sizes of an example, for
    plans."""
    weights: Callable[[ObjectiveConfig], Sequence[float]] = configured_weights
    """Weights in the order of `terms.names`, the length's last."""
    sample_noise: Callable[[Generator, IntArray, IntArray], IntArray] | None = None
    """(generator, target, masked positions) -> `MaskedPair.chosen`: what else is drawn for a pair,
    beside the masks."""
    before_decode: BeforeDecode | None = None
    """A pass before the decoder's own, which changes the batch's slots. All tensor-parallel ranks
    take part."""
    alignment_loss: AlignmentLoss | None = None
    """The term of `terms.aligned_stream`. All tensor-parallel ranks take part."""
