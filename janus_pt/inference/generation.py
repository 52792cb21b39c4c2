"""An output as users get it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """An output for one input.

    Attributes:
        text: the tokens as text.
        tokens: ids without bos and eos.
        score: the number by which outputs were compared. "ar", "speculative": log-probability, eos
            included, over (tokens + 1) to the power of `length_penalty` (1 in "speculative").
            "nar": mean log-probability of the tokens. "bang_nar": the same, eos included. "ctc":
            mean log-probability of the slots, blanks included.
            "rerank": mean log-probability under P_AR, eos included, mixed with the score of "nar"
            by `ar_weight`.
        token_scores: log-probability of each token, under P_AR in "ar" and "speculative", else
            under P_NAR.
        decoder_passes: how often the decoder ran for it.
        drafted, accepted: "speculative": tokens that were drafted, and how many of them were kept.
    """

    text: str
    tokens: list[int]
    score: float
    token_scores: list[float]
    decoder_passes: int
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were kept; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


EMPTY_GENERATION = Generation("", [], 0.0, [], 0)
"""The output for an empty input; the model is not asked."""
