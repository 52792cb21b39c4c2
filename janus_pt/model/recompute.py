"""Activation checkpointing: what is computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

LAYER, ATTENTION, FEED_FORWARD = "all", "attention", "feed_forward"
"""What `parallel.activation_checkpointing` may name: whole layers, or one kind of sublayer."""


_depth = 0


def is_recomputed() -> bool:
    """Whether what is being computed will be, or is, computed again in the backward pass."""
    return _depth > 0


@contextmanager
def _inside() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def recomputed(function: Callable[..., Tensor], *inputs: Any, draws_alike: bool = False) -> Tensor:
    """`function(*inputs)`, of which autograd keeps the inputs alone.

    Args:
        draws_alike: the function starts torch's generators itself; otherwise their states are kept.
    """

    def compute(*inputs: Any) -> Tensor:
        with _inside():
            return function(*inputs)

    # torch's other way, `use_reentrant=True`, asks for an input that requires a gradient.
    result: Tensor = checkpoint(
        compute, *inputs, use_reentrant=False, preserve_rng_state=not draws_alike
    )
    return result
