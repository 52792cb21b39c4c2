"""What the ways of decoding share: the options on length, and the form of the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from pydantic import ConfigDict
from torch import Tensor

from janus_pt.config.schema import Count, Positive, Section
from janus_pt.utils.errors import UserError

DEFAULT_MAX_LENGTH = 200
"""fairseq's; keeps a model that has not learnt to end from running on to its last position."""


class LengthOptions(Section):
    """Bounds on the output, in tokens without bos and eos."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    max_length: Positive | None = None
    """Longest output in tokens, bos and eos left out; default: 200, or what the model's positions allow."""
    min_length: Count = 1
    """Shortest output in tokens."""

    def longest(self, limit: int) -> int:
        """The longest output for a model whose positions allow `limit` tokens.

        Raises:
            UserError: the bounds leave no length, or the model cannot write that many tokens.
        """
        longest = min(DEFAULT_MAX_LENGTH, limit) if self.max_length is None else self.max_length
        if longest > limit:
            raise UserError(
                f"max_length: {longest} is more than the {limit} tokens that the model can write"
            )
        if self.min_length > longest:
            raise UserError(
                f"min_length: {self.min_length} is more than the maximum length, {longest}"
            )
        return longest


@dataclass(frozen=True)
class Hypotheses:
    """What was found for a batch of sources.

    Attributes:
        tokens: `[batch, candidates, length]`, without bos and eos, padded.
        token_scores: log-probability of each token, same shape; 0 at padding.
        lengths: `[batch, candidates]`.
        scores: `[batch, candidates]`; -inf for a place that holds no hypothesis.
        passes: `[batch]`: decoder passes that were made for the sentence.
        drafted, accepted: `[batch]`: speculative decoding's drafted tokens, and those of them that were kept.
    """

    tokens: Tensor
    token_scores: Tensor
    lengths: Tensor
    scores: Tensor
    passes: Tensor
    drafted: Tensor | None = None
    accepted: Tensor | None = None

    def best_first(self) -> Hypotheses:
        """The candidates of each sentence in falling order of score; equal ones stay in order."""
        scores, order = self.scores.sort(dim=1, descending=True, stable=True)
        row = torch.arange(len(order), device=order.device)[:, None]
        tokens, token_scores, lengths = (
            self.tokens[row, order],
            self.token_scores[row, order],
            self.lengths[row, order],
        )
        return replace(
            self, tokens=tokens, token_scores=token_scores, lengths=lengths, scores=scores
        )


def is_one_of(ids: Iterable[int], vocab_size: int, device: torch.device) -> Tensor:
    """Boolean `[vocab]`, true at `ids`."""
    found = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    found[list(ids)] = True
    return found


def score_dtype(logits: Tensor) -> torch.dtype:
    """Log-probabilities are at least float32, whatever the model computes in."""
    return torch.promote_types(logits.dtype, torch.float32)
