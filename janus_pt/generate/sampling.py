"""Drawing tokens. Chance is a function of seed, source, copy and step, so a sentence does not feel its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from janus_pt.packing.slots import Source

MULTIPLIER = 6364136223846793005
"""Of a well-known 64-bit linear congruential generator: an odd number whose powers look random."""
GOLDEN = -7046029254386353131
"""2⁶⁴ over the golden ratio, as a signed number: what splitmix64 adds a step."""


def sampling_keys(source: Source, seed: int, copies: int) -> Tensor:
    """A 64-bit key for each row, `[sources × copies]`; padding takes no part."""
    place = torch.arange(source.tokens.shape[1], device=source.tokens.device)
    power = torch.ones_like(place).fill_(MULTIPLIER).cumprod(0)
    real = source.samples >= 0
    key = _mix(((source.tokens + 1) * power * real).sum(dim=1))
    copy = torch.arange(copies, device=key.device)
    return _mix(_mix(key + _signed(seed * GOLDEN))[:, None] + copy * GOLDEN).flatten()


def uniform(keys: Tensor, step: int) -> Tensor:
    """A number in [0, 1) for each of `keys [rows]`, float64."""
    return _shift(_mix(keys + _signed((step + 1) * GOLDEN)), 11).double() * 2.0**-53


def sample(
    log_probs: Tensor, chance: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row of `log_probs [rows, vocab]`, by inverting the distribution at `chance [rows]`.

    Returns:
        The model's own log-probability of each token (before temperature and cuts), and the tokens; `[rows]` each.
    """
    size = min(top_k, log_probs.shape[1]) if top_k else log_probs.shape[1]
    values, ids = (log_probs / temperature).topk(size, dim=-1)
    probs = values.double().softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    probs = probs.where(before < top_p, 0)
    reached = probs.cumsum(dim=-1)
    place = (reached <= chance[:, None] * reached[:, -1:]).sum(dim=-1, keepdim=True)
    tokens = ids.gather(1, place)
    return log_probs.gather(1, tokens)[:, 0], tokens[:, 0]


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea, Flood 2014), on signed numbers."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _signed(number: int) -> int:
    """The same modulo 2⁶⁴, in the range of a signed number."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
