"""P_AR of whole texts, in one parallel pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from janus_pt.generate.incremental import IncrementalDecoder, SourceMemory
from janus_pt.model.transformer import JanusTransformer


class ArScores(NamedTuple):
    """Log-probabilities under P_AR.

    Attributes:
        tokens: of each token after those before it, `[rows, length]`; 0 at padding.
        ends: of eos after the first t tokens, `[rows, length + 1]`; -inf beyond the text.
    """

    tokens: Tensor
    ends: Tensor

    def whole(self, lengths: Tensor) -> Tensor:
        """Of each text with its eos, `[rows]`."""
        return self.tokens.sum(dim=1) + self.ends.gather(1, lengths[:, None])[:, 0]


def score_with_ar(
    model: JanusTransformer, memory: SourceMemory, tokens: Tensor, lengths: Tensor
) -> ArScores:
    """Score texts `tokens [rows, length]` of `lengths [rows]`; rows are sources × copies, source by source."""
    config = model.config
    bos = torch.full_like(tokens[:, :1], config.bos_token_id)
    block = torch.cat((bos, tokens), dim=1)
    decoder = IncrementalDecoder(model, memory)
    log_probs = decoder.read_block(block, torch.zeros_like(lengths), block.shape[1])
    place = torch.arange(block.shape[1], device=tokens.device)
    chosen = log_probs[:, :-1].gather(2, tokens[..., None])[..., 0]
    chosen = chosen.masked_fill(place[:-1] >= lengths[:, None], 0)
    ends = log_probs[..., config.eos_token_id].masked_fill(place > lengths[:, None], -torch.inf)
    return ArScores(chosen, ends)
