"""What all ways to decode share: options on length, and the form of the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from pydantic import ConfigDict
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.config.section import Count, Positive, Section
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source
from janus_pt.utils.errors import UserError

DEFAULT_MAX_LENGTH = 200
"""fairseq's; stops a model that has not learnt to end before it fills all its positions."""


class DecodingOptions(Section, ABC):
    """A way to decode with its options. All ways have bounds on the output's length."""

    # The docstrings below the fields become the help texts of the command lines.
    model_config = ConfigDict(use_attribute_docstrings=True)

    max_length: Positive | None = None
    """Longest output in tokens without bos and eos; default: 200, or what the positions allow."""
    min_length: Count = 1
    """Shortest output in tokens."""

    @abstractmethod
    def decode(self, model: JanusTransformer, source: Source) -> Hypotheses:
        """Outputs for a batch of sources.

        Raises:
            UserError: the bounds on the length leave none that the model can write, or the model
                cannot decode this way.
        """

    @property
    def num_outputs(self) -> int:
        """Outputs that are wanted for each source."""
        return 1

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


def most_tokens(config: ModelConfig) -> int:
    """The longest output of P_AR, whose contents are the prefix and the text, from the offset on."""
    contents = config.max_positions - config.ar_position_offset
    return contents - len(config.target_frame.prefix)


@dataclass(frozen=True)
class Hypotheses:
    """Outputs for a batch of sources.

    Attributes:
        tokens: `[batch, candidates, length]`, without bos and eos, padded.
        token_scores: log-probability of each token, same shape; 0 at padding.
        lengths: `[batch, candidates]`.
        scores: `[batch, candidates]`; -inf for a place that holds no hypothesis.
        passes: `[batch]`: decoder passes that were made for the sentence.
        drafted, accepted: `[batch]`: tokens that speculative decoding drafted, and how many of
            them it kept.
    """

    tokens: Tensor
    token_scores: Tensor
    lengths: Tensor
    scores: Tensor
    passes: Tensor
    drafted: Tensor | None = None
    accepted: Tensor | None = None

    def best_first(self) -> Hypotheses:
        """The candidates of each sentence in falling order of score; equal ones keep their order."""
        scores, order = self.scores.sort(dim=1, descending=True, stable=True)
        row = torch.arange(len(order), device=order.device)[:, None]
        return replace(
            self,
            tokens=self.tokens[row, order],
            token_scores=self.token_scores[row, order],
            lengths=self.lengths[row, order],
            scores=scores,
        )

    def without_repeats(self, pad_token_id: int) -> Hypotheses:
        """The same without tokens that equal their left neighbour; scores of outputs stay."""
        position = torch.arange(self.tokens.shape[-1], device=self.tokens.device)
        stays = position < self.lengths[..., None]
        stays[..., 1:] &= self.tokens[..., 1:] != self.tokens[..., :-1]
        # A stable sort of "goes" moves the tokens that stay to the front, in their order.
        order = (~stays).byte().argsort(dim=-1, stable=True)
        lengths = stays.sum(dim=-1)
        outside = position >= lengths[..., None]
        return replace(
            self,
            tokens=self.tokens.gather(-1, order).masked_fill(outside, pad_token_id),
            token_scores=self.token_scores.gather(-1, order).masked_fill(outside, 0),
            lengths=lengths,
        )


def score_dtype(logits: Tensor) -> torch.dtype:
    """Floating type of log-probabilities: float32 at least, whatever the model computes in."""
    return torch.promote_types(logits.dtype, torch.float32)
