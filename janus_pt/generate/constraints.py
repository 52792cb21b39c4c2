"""What may not be written: special symbols, an end too early or too late, an n-gram twice."""

from __future__ import annotations

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig

NOTHING = float("-inf")
"""Score of what is not allowed."""


def never_written(config: ModelConfig) -> list[int]:
    """Symbols that P_AR must not produce; unk is one that it may, also where it serves as the mask symbol."""
    return sorted(
        {config.pad_token_id, config.bos_token_id, config.mask_token_id} - {config.unk_token_id}
    )


class Rules:
    """Bars continuations. All rows are equally long."""

    def __init__(
        self,
        config: ModelConfig,
        shortest: int,
        longest: int,
        no_repeat_ngram_size: int,
        device: torch.device,
    ) -> None:
        self._eos = config.eos_token_id
        self._shortest, self._longest, self._ngram = shortest, longest, no_repeat_ngram_size
        barred = never_written(config)
        self._barred = torch.tensor(barred, device=device)
        self._barred_early = torch.tensor([*barred, self._eos], device=device)

    def apply(self, log_probs: Tensor, written: Tensor) -> Tensor:
        """Give `log_probs [rows, vocab]`, in place, -inf where the tokens `written [rows, step]` bar a token.

        At the longest length nothing but eos is left.
        """
        step = written.shape[1]
        if step == self._longest:
            eos = log_probs[:, self._eos].clone()
            log_probs.fill_(NOTHING)
            log_probs[:, self._eos] = eos
            return log_probs
        log_probs.index_fill_(
            1, self._barred_early if step < self._shortest else self._barred, NOTHING
        )
        if self._ngram and step + 1 >= self._ngram:
            self._bar_repetitions(log_probs, written)
        return log_probs

    def _bar_repetitions(self, log_probs: Tensor, written: Tensor) -> None:
        """No token that would end an n-gram for the second time."""
        if written.shape[1] < self._ngram:
            return
        ngrams = written.unfold(1, self._ngram, 1)
        recent = written[:, None, written.shape[1] - self._ngram + 1 :]
        again = (ngrams[..., :-1] == recent).all(-1)
        penalty = torch.zeros_like(log_probs)
        row = torch.arange(len(written), device=written.device)[:, None].expand_as(again)
        penalty[row[again], ngrams[..., -1][again]] = NOTHING
        log_probs += penalty
