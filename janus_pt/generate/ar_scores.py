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
        tokens: of each token after the tokens before it, `[rows, length]`; 0 at padding.
        ends: of eos after the first t tokens, `[rows, length + 1]`; -inf beyond the text.
    """

    tokens: Tensor
    ends: Tensor

    def whole(self, lengths: Tensor) -> Tensor:
        """Log-probability of each text with its eos, `[rows]`."""
        end = self.ends.gather(1, lengths[:, None])[:, 0]
        return self.tokens.sum(dim=1) + end


def score_with_ar(
    model: JanusTransformer, memory: SourceMemory, tokens: Tensor, lengths: Tensor
) -> ArScores:
    """Score texts `tokens [rows, length]` of `lengths [rows]`.

    Rows are sources × copies, source by source.
    """
    config = model.config
    decoder = IncrementalDecoder(model, memory)
    # bos and all tokens: position t is read to predict token t, the last one to predict eos.
    first = decoder.start(len(tokens))
    block = torch.cat((first[:, None], tokens), dim=1)
    width = block.shape[1]
    start = torch.zeros_like(lengths)
    log_probs = decoder.read_block(block, start, width)
    position = torch.arange(width, device=tokens.device)

    token_scores = log_probs[:, :-1].gather(2, tokens[..., None])[..., 0]
    is_padding = position[:-1] >= lengths[:, None]
    token_scores = token_scores.masked_fill(is_padding, 0)

    # Position `lengths` is still inside: there eos comes after the whole text.
    beyond_text = position > lengths[:, None]
    ends = log_probs[..., config.eos_token_id].masked_fill(beyond_text, -torch.inf)
    return ArScores(token_scores, ends)
