"""The best token of many hidden states, without the logits of all of them at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def best_tokens(
    hidden: Tensor, scores: Callable[[Tensor], Tensor], vocab_size: int, max_elements: int
) -> tuple[Tensor, Tensor]:
    """The token with the highest score for each of `hidden [rows, hidden]`, and that score.

    Args:
        scores: makes scores `[n, vocab_size]` of n rows; called with some rows at a time.
        max_elements: scores that may exist at once. One row is computed in any case.

    Returns:
        Tokens and scores, `[rows]` each; of equal scores the first one is the highest.
    """
    tokens = []
    highest = []
    # The logits of a whole batch would be the largest tensor of all by far.
    rows_at_once = max(1, max_elements // vocab_size)
    for chunk in hidden.split(rows_at_once):
        score, token = scores(chunk).max(dim=-1)
        tokens.append(token)
        highest.append(score)
    return torch.cat(tokens), torch.cat(highest)
