"""How long an output should be, for decoding that must know it beforehand."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from janus_pt.generate.ar_scores import score_with_ar
from janus_pt.generate.incremental import SourceMemory
from janus_pt.generate.refine import BOUNDARY, all_masked, refine
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source

MARGIN = 1.25
"""How much longer than the length head says a draft is in which P_AR looks for the end."""


def candidate_lengths(best: Tensor, length_beam: int, shortest: int, longest: int) -> Tensor:
    """Output lengths `[sources, length_beam]` around `best [sources]`, within the bounds."""
    offsets = torch.arange(length_beam, device=best.device) - length_beam // 2
    return (best[:, None].clamp(shortest, longest) + offsets).clamp(shortest, longest)


def lengths_from_ratio(source: Source, ratio: float) -> Tensor:
    """`ratio` times the source's length without bos and eos, rounded."""
    lengths = (source.samples >= 0).sum(dim=1) - BOUNDARY
    return (lengths * ratio).round().long()


def lengths_from_ar(
    model: JanusTransformer, memory: SourceMemory, longest: int, forbidden: Collection[int]
) -> tuple[Tensor, int]:
    """Where P_AR would end a draft that P_NAR wrote in one pass, somewhat longer than the length head says.

    Returns:
        The lengths, `[sources]`, and the decoder passes that were made.
    """
    predicted = (memory.length_logits.argmax(dim=1) - BOUNDARY).clamp(min=1)
    drafted = ((predicted * MARGIN).ceil().long() + 1).clamp(max=longest)
    draft = refine(model, memory, all_masked(drafted, model.config), 1, forbidden)
    ends = score_with_ar(model, memory, draft.tokens, drafted).ends
    return ends.argmax(dim=1), 2
