"""Drawing a token from a distribution, by temperature, top-k and top-p."""

from __future__ import annotations

from torch import Tensor


def sample(
    log_probs: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row of `log_probs [rows, vocab]`, by inverting its distribution.

    Args:
        uniform: a number in [0, 1) for each row, `[rows]`.
        top_k: 0 for all tokens.

    Returns:
        The tokens, and the model's own log-probability of each, before temperature and cuts;
        `[rows]` each.
    """
    vocab_size = log_probs.shape[1]
    size = min(top_k, vocab_size) if top_k else vocab_size
    scaled, ids = (log_probs / temperature).topk(size, dim=-1)
    # float64: with a large vocabulary the running sum of float32 would end well short of 1.
    probs = scaled.double().softmax(dim=-1)
    # A token stays if those before it have less than top_p together; the first one always does.
    mass_before = probs.cumsum(dim=-1) - probs
    probs = probs.where(mass_before < top_p, 0)
    cumulative = probs.cumsum(dim=-1)
    # Scaling the number, not the probabilities, normalises what the cut has left.
    threshold = uniform[:, None] * cumulative[:, -1:]
    rank = (cumulative <= threshold).sum(dim=-1, keepdim=True)
    tokens = ids.gather(1, rank)
    return tokens[:, 0], log_probs.gather(1, tokens)[:, 0]
