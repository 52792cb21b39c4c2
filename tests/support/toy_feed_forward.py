"""A toy feed-forward network, as a newcomer would add it: this class and a row in `FEED_FORWARDS`.

A second column projection is added behind the activation. The row replaces that of "plain", since the
names that a configuration may give are written in `config/schema.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig
from janus_pt.model.cost import AllReduces, Cost, Elements, linear_size
from janus_pt.model.feed_forward import FEED_FORWARDS, FeedForward
from janus_pt.model.layer_factory import Layers
from tests.support import layouts

NAME = "plain"


class ShortcutFeedForward(FeedForward):
    """`fc2(activation(fc1(x)) + shortcut(x))`."""

    def projections(self, config: ModelConfig, layers: Layers) -> dict[str, nn.Module]:
        """`fc1`, `shortcut` and `fc2`."""
        hidden_size, ffn_hidden_size = config.hidden_size, config.ffn_hidden_size
        return {
            "fc1": layers.column_without_reduce(hidden_size, ffn_hidden_size),
            "shortcut": layers.column_without_reduce(hidden_size, ffn_hidden_size),
            "fc2": layers.row(ffn_hidden_size, hidden_size),
        }

    def hidden(self, layer: Any, x: Tensor) -> Tensor:
        """`activation(fc1(x)) + shortcut(x)`."""
        x = layer.copy_to_tp_region(x)
        hidden: Tensor = layer.activation(layer.fc1(x)) + layer.shortcut(x)
        return hidden

    def cost(self, layer: Any, rows: float) -> Cost:
        """Of two projections; a sum keeps nothing."""
        ffn, hidden = layer.fc1.weight.shape
        return Cost(
            multiply_adds=linear_size(layer.fc1, layer.shortcut) * rows,
            kept=Elements(replicated=hidden * rows, sharded=2 * ffn * rows),
            working=Elements(replicated=3 * hidden * rows, sharded=2 * ffn * rows),
            backward=AllReduces(hidden * rows, 1),
        )


def train(config: str, settings: list[str], resume: bool) -> None:
    """One rank of a run with the toy network; the process is used again, so the row is put back."""
    plain = FEED_FORWARDS[NAME]
    FEED_FORWARDS[NAME] = ShortcutFeedForward()
    try:
        layouts.train(config, settings, resume)
    finally:
        FEED_FORWARDS[NAME] = plain
