"""Activation checkpointing: what is computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

LAYER, ATTENTION, FEED_FORWARD = "all", "attention", "feed_forward"
"""What `parallel.activation_checkpointing` may name: whole layers, or one kind of sublayer."""


def recomputed(
    function: Callable[..., Tensor], *inputs: Any, draws_alike: bool = False
) -> Tensor:
    """`function(*inputs)`, of which autograd keeps the inputs alone.

    Args:
        draws_alike: the function starts torch's generators itself; otherwise their states are kept.
    """
    # torch's other way, `use_reentrant=True`, asks for an input that requires a gradient.
    result: Tensor = checkpoint(
        function, *inputs, use_reentrant=False, preserve_rng_state=not draws_alike
    )
    return result
