"""Counter-based random numbers: a pure function of seed, source, copy and step.

By hand, because a torch generator draws in the order of its batch and differs between devices. Here
a sentence gets the same numbers on every device, whatever else is decoded and in whatever order.
The mixing function is splitmix64's (Steele, Lea and Flood 2014), in wrapping 64-bit arithmetic,
which all of torch's devices have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from janus_pt.packing.slots import Source

MULTIPLIER = 6364136223846793005
"""Of Knuth's 64-bit linear congruential generator: an odd number whose powers look random."""
GOLDEN = -7046029254386353131
"""2⁶⁴ over the golden ratio, as a signed number: what splitmix64 adds at each step."""


def sampling_keys(source: Source, seed: int, copies: int) -> Tensor:
    """A 64-bit key for each row, `[sources × copies]`, of the source's tokens, `seed` and copy."""
    positions = torch.arange(source.tokens.shape[1], device=source.tokens.device)
    # A polynomial hash; padding adds nothing, so that the key does not depend on the batch's width.
    powers = torch.ones_like(positions).fill_(MULTIPLIER).cumprod(0)
    real = source.samples >= 0
    source_hash = _mix(((source.tokens + 1) * powers * real).sum(dim=1))
    seeded = _mix(source_hash + _as_signed(seed * GOLDEN))
    copy = torch.arange(copies, device=seeded.device)
    return _mix(seeded[:, None] + copy * GOLDEN).flatten()


def uniform(keys: Tensor, step: int) -> Tensor:
    """A number in [0, 1) for each of `keys [rows]` at a step of decoding, float64."""
    bits = _mix(keys + _as_signed((step + 1) * GOLDEN))
    # float64 holds 53 bits exactly, so the upper 53 of the 64 are used.
    return _shift_right(bits, 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser, on signed numbers."""
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685
    return x ^ _shift_right(x, 31)


def _as_signed(number: int) -> int:
    """The same number modulo 2⁶⁴, in the range of int64: torch takes no larger Python integers."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's shifts in copies of the sign, which the mask removes."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
