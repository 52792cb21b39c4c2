"""A stack of layers with its position embedding: the encoder and the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from janus_pt.config.schema import ModelConfig
from janus_pt.model.attention import LayerCache, Mask
from janus_pt.model.blocks import DecoderLayer, EncoderLayer, layer_norm
from janus_pt.model.dropout import Seed, dropout, seed_layer
from janus_pt.model.layer_factory import Layers
from janus_pt.model.masks import DecoderMasks
from janus_pt.model.positions import SinusoidalPositions


class Stack(nn.Module):
    """Embedding of tokens and positions, then layers; `recompute` gives up activations for time.

    Layers are numbered through encoder and decoder, embeddings counted as layers; `first` is the number of this
    stack's embedding. With a `seed`, a layer's dropout depends on that and on its number alone. A stack may lack
    layers and embedding: a pipeline stage holds only its own.
    """

    def __init__(self, config: ModelConfig, layers: list[nn.Module], first: int) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.scale = math.sqrt(hidden_size) if config.scale_embedding else 1.0
        table = nn.Embedding if config.positions == "learned" else SinusoidalPositions
        self.embed_positions: nn.Module = table(config.max_positions, hidden_size)
        projects = config.embedding_projection
        self.embed_projection = (
            nn.Linear(2 * hidden_size, hidden_size, bias=False) if projects else None
        )
        self.layernorm_embedding = (
            layer_norm(config) if config.embedding_layer_norm else nn.Identity()
        )
        self.dropout = config.dropout
        self.layers = nn.ModuleList(layers)
        self.layer_norm = layer_norm(config) if config.pre_layer_norm else nn.Identity()
        self.first = first
        self.recompute = False
        self.seed: Seed | None = None

    def embed(self, embedded_tokens: Tensor, positions: Tensor) -> Tensor:
        """The first layer's input from embedded tokens `[batch, length, hidden]` and positions `[batch, length]`."""
        if self.seed is not None and self.training:
            seed_layer(self.seed, self.first)
        x = embedded_tokens * self.scale
        places = self.embed_positions(positions).to(x.dtype)  # DeepSpeed leaves buffers in float32
        x = (
            self.embed_projection(torch.cat((x, places), dim=-1))
            if self.embed_projection
            else x + places
        )
        return dropout(self.layernorm_embedding(x), self.dropout if self.training else 0.0)

    def numbered(self) -> Iterator[tuple[int, nn.Module]]:
        """The layers that are here, each with its index in the whole stack."""
        return ((int(name), layer) for name, layer in self.layers.named_children())

    def _run(self, index: int, layer: nn.Module, *inputs: Any) -> Tensor:
        seed = self.seed if self.training else None

        def seeded(*inputs: Any) -> Tensor:
            if seed is not None:
                seed_layer(seed, self.first + 1 + index)
            return layer(*inputs)

        if self.recompute and self.training:
            return checkpoint(seeded, *inputs, use_reentrant=False, preserve_rng_state=seed is None)
        return seeded(*inputs)


class Encoder(Stack):
    """The bidirectional encoder."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__(
            config, [EncoderLayer(config, layers) for _ in range(config.encoder_layers)], first=0
        )

    def run(self, x: Tensor, mask: Mask) -> Tensor:
        """The layers, from and to `[batch, length, hidden]`."""
        for index, layer in self.numbered():
            x = self._run(index, layer, x, mask)
        return x

    def forward(self, embedded_tokens: Tensor, positions: Tensor, mask: Mask) -> Tensor:
        """Encoder output `[batch, length, hidden]`."""
        return self.layer_norm(self.run(self.embed(embedded_tokens, positions), mask))


class Decoder(Stack):
    """The decoder, run once over all streams."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        stack = [DecoderLayer(config, layers) for _ in range(config.decoder_layers)]
        super().__init__(config, list(stack), first=config.encoder_layers + 1)
        self.last, self.copy_to_tp_region = config.decoder_layers - 1, layers.copy_to_tp_region
        self.causal = config.causal_self_attention

    def run(
        self, x: Tensor, encoder_out: Tensor, reading: Callable[[bool], DecoderMasks]
    ) -> Tensor:
        """The layers, from `[batch, slots, hidden]` to the same, or less where the last layer is here; `reading` says
        what the last one reads, or another."""
        encoder_out = self.copy_to_tp_region(encoder_out)
        for index, layer in self.numbered():
            x = self._run(index, layer, x, encoder_out, reading(index == self.last))
        return x

    def forward(self, embedded_tokens: Tensor, positions: Tensor, *inputs: Any) -> Tensor:
        """Hidden states `[batch, slots, hidden]` of the slots that predict; `inputs` are those of `run` after its
        first."""
        return self.layer_norm(self.run(self.embed(embedded_tokens, positions), *inputs))

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
        causal = None
        if self.causal:
            seen = positions[:, None, None, :num_content] <= positions[:, None, :, None]
            causal = seen if self_mask is None else seen & self_mask
        reading = last = DecoderMasks(num_content, 0, self_mask, cross_mask, causal)
        if num_content < x.shape[1]:
            self_mask = None if self_mask is None else self_mask[:, :, num_content:]
            last = replace(reading, first=num_content, self_mask=self_mask)
        for layer, cache in zip(self.layers[:-1], caches[:-1], strict=True):
            x = layer(x, None, reading, cache)
        return self.layer_norm(self.layers[-1](x, None, last, caches[-1]))
