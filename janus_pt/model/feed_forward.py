"""All kinds of feed-forward networks, by the name that `model.feed_forward` gives them.

A kind has no state. Its projections are children of the layer, so that their parameters have
fairseq's names, `….fc1.weight`, in checkpoints and exports of every kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig
from janus_pt.model.cost import AllReduces, Cost, Elements, linear_size
from janus_pt.model.layer_factory import Layers

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
"""By the name that `model.activation` gives them."""


class FeedForward(ABC):
    """A kind of network from `[..., hidden]` to the ffn size and back; the way back is always `fc2`."""

    @abstractmethod
    def projections(self, config: ModelConfig, layers: Layers) -> dict[str, nn.Module]:
        """The layer's children by name: `fc2`, a row layer, and the column layers before it."""

    @abstractmethod
    def hidden(self, layer: Any, x: Tensor) -> Tensor:
        """What `fc2` reads, this rank's features `[..., ffn / ranks]`, from `x [..., hidden]`.

        `layer` has the projections, `activation`, and `copy_to_tp_region` of the layer factory.
        """

    @abstractmethod
    def cost(self, layer: Any, rows: float) -> Cost:
        """Of `hidden` for `rows` slots, with all that autograd keeps from `x` to the input of `fc2`."""


class PlainFeedForward(FeedForward):
    """`fc2(activation(fc1(x)))` (Vaswani et al. 2017)."""

    def projections(self, config: ModelConfig, layers: Layers) -> dict[str, nn.Module]:
        """`fc1` and `fc2`."""
        return {
            "fc1": layers.column(config.hidden_size, config.ffn_hidden_size),
            "fc2": layers.row(config.ffn_hidden_size, config.hidden_size),
        }

    def hidden(self, layer: Any, x: Tensor) -> Tensor:
        """`activation(fc1(x))`."""
        hidden: Tensor = layer.activation(layer.fc1(x))
        return hidden

    def cost(self, layer: Any, rows: float) -> Cost:
        """Of one projection and the activation."""
        ffn, hidden = layer.fc1.weight.shape
        # ReLU's backward pass needs its output alone, which `fc2` keeps anyway.
        copies = 1 if layer.activation is F.relu else 2
        return Cost(
            multiply_adds=linear_size(layer.fc1) * rows,
            kept=Elements(replicated=hidden * rows, sharded=copies * ffn * rows),
            # Gradients of the layer's output, of `fc2`'s and of `fc1`'s input, and on both sides of the activation.
            working=Elements(replicated=3 * hidden * rows, sharded=2 * ffn * rows),
            # `fc1` sums its input's gradient over the ranks.
            backward=AllReduces(hidden * rows, 1),
        )


class GatedFeedForward(FeedForward):
    """`fc2(activation(gate_proj(x)) * fc1(x))` (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def projections(self, config: ModelConfig, layers: Layers) -> dict[str, nn.Module]:
        """`gate_proj`, `fc1` and `fc2`."""
        hidden_size, ffn_hidden_size = config.hidden_size, config.ffn_hidden_size
        return {
            "gate_proj": layers.column_without_reduce(hidden_size, ffn_hidden_size),
            "fc1": layers.column_without_reduce(hidden_size, ffn_hidden_size),
            "fc2": layers.row(ffn_hidden_size, hidden_size),
        }

    def hidden(self, layer: Any, x: Tensor) -> Tensor:
        """`activation(gate_proj(x)) * fc1(x)`."""
        # Two columns read `x`: its gradient is summed over the ranks once for both.
        x = layer.copy_to_tp_region(x)
        gate = layer.activation(layer.gate_proj(x))
        hidden: Tensor = gate * layer.fc1(x)
        return hidden

    def cost(self, layer: Any, rows: float) -> Cost:
        """Of two projections, the activation and the product."""
        ffn, hidden = layer.fc1.weight.shape
        # Both factors and the product, which `fc2` reads; and the activation's input, which ReLU does
        # not need.
        copies = 3 if layer.activation is F.relu else 4
        return Cost(
            multiply_adds=linear_size(layer.gate_proj, layer.fc1) * rows,
            kept=Elements(replicated=hidden * rows, sharded=copies * ffn * rows),
            # Gradients as in `PlainFeedForward`, and of the second factor.
            working=Elements(replicated=3 * hidden * rows, sharded=3 * ffn * rows),
            # `copy_to_tp_region` sums the gradients of both projections at once.
            backward=AllReduces(hidden * rows, 1),
        )


FEED_FORWARDS: dict[str, FeedForward] = {
    "plain": PlainFeedForward(),
    "gated": GatedFeedForward(),
}
