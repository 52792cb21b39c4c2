"""A stack of layers with its position embedding: the encoder and the decoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from janus_pt.config import ModelConfig
from janus_pt.model.attention import LayerCache, Mask
from janus_pt.model.block import DecoderLayer, EncoderLayer, layer_norm
from janus_pt.model.layers import Layers, embedding

SINUSOIDAL_OFFSET = 2
"""fairseq's tables give position p the row p + 2; kept, so that its models and ours agree."""


class SinusoidalPositions(nn.Module):
    """Fixed position table as in tensor2tensor and fairseq: all sines, then all cosines."""

    def __init__(self, rows: int, hidden_size: int) -> None:
        super().__init__()
        half = hidden_size // 2
        rates = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / (half - 1)))
        angles = torch.arange(SINUSOIDAL_OFFSET, rows + SINUSOIDAL_OFFSET, dtype=torch.float64)[:, None] * rates
        table = torch.cat((angles.sin(), angles.cos()), dim=1)
        self.register_buffer("table", table.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Rows of the table, `[..., hidden]`."""
        return self.get_buffer("table")[positions]


class Stack(nn.Module):
    """Embedding of tokens and positions, then layers; `recompute` gives up activations for time."""

    def __init__(self, config: ModelConfig, layers: list[nn.Module]) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.scale = math.sqrt(hidden_size) if config.scale_embedding else 1.0
        self.embed_positions: nn.Module
        if config.positions == "learned":
            self.embed_positions = embedding(config.max_positions, hidden_size, config.init_std)
        else:
            self.embed_positions = SinusoidalPositions(config.max_positions, hidden_size)
        self.layernorm_embedding = layer_norm(config) if config.embedding_layer_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layers)
        self.layer_norm = layer_norm(config) if config.pre_layer_norm else nn.Identity()
        self.recompute = False

    def embed(self, embedded_tokens: Tensor, positions: Tensor) -> Tensor:
        """The first layer's input from embedded tokens `[batch, length, hidden]` and positions `[batch, length]`."""
        x = embedded_tokens * self.scale + self.embed_positions(positions)
        return self.dropout(self.layernorm_embedding(x))

    def _run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


class Encoder(Stack):
    """The bidirectional encoder."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__(config, [EncoderLayer(config, layers) for _ in range(config.encoder_layers)])

    def forward(self, embedded_tokens: Tensor, positions: Tensor, mask: Mask) -> Tensor:
        """Encoder output `[batch, length, hidden]`."""
        x = self.embed(embedded_tokens, positions)
        for layer in self.layers:
            x = self._run(layer, x, mask)
        return self.layer_norm(x)


class Decoder(Stack):
    """The decoder, run once over all streams."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__(config, [DecoderLayer(config, layers) for _ in range(config.decoder_layers)])

    def forward(
        self,
        embedded_tokens: Tensor,
        positions: Tensor,
        encoder_out: Tensor,
        num_content: int,
        self_mask: Mask | None,
        cross_mask: Mask | None,
    ) -> Tensor:
        """Hidden states of all slots, `[batch, slots, hidden]`."""
        x = self.embed(embedded_tokens, positions)
        for layer in self.layers:
            x = self._run(layer, x, encoder_out, num_content, self_mask, cross_mask)
        return self.layer_norm(x)

    def read_on(
        self,
        embedded_tokens: Tensor,
        positions: Tensor,
        num_content: int,
        self_mask: Tensor | None,
        cross_mask: Tensor | None,
        caches: list[LayerCache],
    ) -> Tensor:
        """`forward` with caches, one a layer, in place of the encoder's output.

        Of a sequence with queries only these are computed in the last layer: `[batch, queries, hidden]`.
        """
        x = self.embed(embedded_tokens, positions)
        last, skip = len(caches) - 1, num_content if num_content < x.shape[1] else 0
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            if index == last and skip:
                self_mask = None if self_mask is None else self_mask[:, :, skip:]
                x = layer(x, None, num_content, self_mask, cross_mask, cache, skip)
            else:
                x = layer(x, None, num_content, self_mask, cross_mask, cache)
        return self.layer_norm(x)
