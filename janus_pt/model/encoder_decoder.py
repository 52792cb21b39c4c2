"""A stack of layers with its position embedding: the encoder and the decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig
from janus_pt.model.blocks import DecoderLayer, EncoderLayer
from janus_pt.model.cost import AllReduces, Cost, Elements
from janus_pt.model.dropout import Seed, dropout, seed_layer
from janus_pt.model.kv_cache import LayerCache
from janus_pt.model.layer_factory import Layers, Rows
from janus_pt.model.layer_numbers import SOURCE_EMBEDDING, slot_embedding
from janus_pt.model.masks import DecoderMasks, EncoderMasks, LayerMasks
from janus_pt.model.norms import make_norm
from janus_pt.model.positions import make_rotation, make_table
from janus_pt.model.recompute import recomputed


class Stack(nn.Module):
    """Embedding of tokens and positions, then layers; `recompute` saves memory of activations for time.

    Layers are numbered through encoder and decoder, embeddings counted as layers; `first` is the number
    of this stack's embedding. With a `seed`, a layer's dropout depends on that and on its number alone.
    A stack may lack layers and embedding: a pipeline stage holds only its own.
    """

    def __init__(
        self, config: ModelConfig, layers: list[nn.Module], first: int, rows: Rows
    ) -> None:
        super().__init__()
        self.rows = rows
        self.hidden_size = config.hidden_size
        self.scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        self.embed_positions = make_table(config)
        self.embed_projection = _embedding_projection(config)
        self.layernorm_embedding = (
            make_norm(config) if config.embedding_layer_norm else nn.Identity()
        )
        self.dropout = config.dropout
        self.layers = nn.ModuleList(layers)
        # Pre-norm layers hand on what no norm has seen.
        self.layer_norm = make_norm(config) if config.pre_layer_norm else nn.Identity()
        self.first = first
        self.recompute = False
        self.seed: Seed | None = None

    def embed(self, embedded_tokens: Tensor, positions: Tensor) -> Tensor:
        """The first layer's input from embedded tokens `[batch, length, hidden]` and positions `[batch, length]`.

        Where ranks share rows, the tokens are this rank's, the positions all.
        """
        if self.seed is not None and self.training:
            seed_layer(self.seed, self.first)
        x = embedded_tokens * self.scale
        if self.embed_positions is not None:
            # DeepSpeed leaves buffers, and so computed tables, in float32.
            embedded_positions = self.embed_positions(self.rows.own(positions)).to(x.dtype)
            if self.embed_projection is not None:
                x = self.embed_projection(torch.cat((x, embedded_positions), dim=-1))
            else:
                x = x + embedded_positions
        probability = self.dropout if self.training else 0.0
        return dropout(self.layernorm_embedding(x), probability, self.rows.share)

    def embedding_cost(self, rows: float) -> Cost:
        """Of `embed` and the token table before it, for `rows` tokens."""
        row = self.hidden_size * rows
        kept = 0.0
        if self.embed_projection is not None:
            # Its input: both embeddings, joined.
            kept += 2 * row
        if not isinstance(self.layernorm_embedding, nn.Identity):
            kept += row
        return Cost(
            kept=Elements(replicated=kept),
            dropout_masks=Elements(replicated=row if self.dropout > 0 else 0.0),
            # Each rank has a part of the token table's rows, and zeros for the others.
            forward=AllReduces(row, 1),
        )

    def norm_cost(self, rows: float) -> Cost:
        """Of the norm behind the last layer, which keeps its input."""
        if isinstance(self.layer_norm, nn.Identity):
            return Cost()
        return Cost(kept=Elements(replicated=self.hidden_size * rows))

    def numbered(self) -> Iterator[tuple[int, nn.Module]]:
        """The layers that are here, each with its index in the whole stack."""
        return ((int(name), layer) for name, layer in self.layers.named_children())

    def _run(self, index: int, layer: nn.Module, *inputs: Any) -> Tensor:
        """`layer(*inputs)`, layer `index` of the stack: its dropout seeded, its activations kept or not."""
        seed = self.seed if self.training else None

        def seeded(*inputs: Any) -> Tensor:
            # Inside, so that the recomputed forward pass draws the same masks.
            if seed is not None:
                seed_layer(seed, self.first + 1 + index)
            return layer(*inputs)

        if self.recompute and self.training:
            return recomputed(seeded, *inputs, draws_alike=seed is not None)
        return seeded(*inputs)


def _embedding_projection(config: ModelConfig) -> nn.Module | None:
    """From the embeddings of token and position, joined, to the hidden size."""
    if not config.embedding_projection:
        return None
    return nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)


class Encoder(Stack):
    """The bidirectional encoder."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        stack: list[nn.Module] = [
            EncoderLayer(config, layers) for _ in range(config.encoder_layers)
        ]
        super().__init__(config, stack, SOURCE_EMBEDDING, layers.rows)

    def run(self, x: Tensor, masks: EncoderMasks) -> Tensor:
        """The layers, from and to `[batch, length, hidden]`."""
        for index, layer in self.numbered():
            x = self._run(index, layer, x, masks)
        return x

    def forward(self, embedded_tokens: Tensor, positions: Tensor, masks: EncoderMasks) -> Tensor:
        """Encoder output `[batch, length, hidden]`."""
        x = self.embed(embedded_tokens, positions)
        return self.layer_norm(self.run(x, masks))


class Decoder(Stack):
    """The decoder, run once over all streams."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        stack: list[nn.Module] = [
            DecoderLayer(config, layers) for _ in range(config.decoder_layers)
        ]
        super().__init__(config, stack, slot_embedding(config), layers.rows)
        self.config = config
        self.copy_to_tp_layers = layers.copy_to_tp_layers

    def run(self, x: Tensor, encoder_out: Tensor, masks: DecoderMasks) -> Tensor:
        """The layers, from `[batch, slots, hidden]` to the same, or fewer slots where the last layer is here."""
        # All layers read the encoder's output: its gradient is summed over the ranks once.
        encoder_out = self.copy_to_tp_layers(encoder_out)
        last = self.config.decoder_layers - 1
        for index, layer in self.numbered():
            x = self._run(index, layer, x, encoder_out, masks.for_layer(is_last=index == last))
        return x

    def forward(
        self,
        embedded_tokens: Tensor,
        positions: Tensor,
        encoder_out: Tensor,
        masks: DecoderMasks,
    ) -> Tensor:
        """Hidden states `[batch, slots, hidden]` of the slots that predict, all of them on every rank."""
        x = self.embed(embedded_tokens, positions)
        return self.output(self.run(x, encoder_out, masks))

    def output(self, x: Tensor) -> Tensor:
        """What losses read, `[batch, slots, hidden]`, from the last layer's output."""
        return self.rows.gather(self.layer_norm(x))

    def decode_step(
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
        causal_mask = None
        if self.config.causal_self_attention:
            causal_mask = _not_to_the_right(positions, num_content)
            if self_mask is not None:
                causal_mask = causal_mask & self_mask
        rotation = make_rotation(self.config, positions, x.dtype)
        masks = LayerMasks(num_content, 0, self_mask, cross_mask, causal_mask, rotation)
        last_masks = masks
        if num_content < x.shape[1]:
            # The contents' output of the last layer would be thrown away.
            query_mask = None if self_mask is None else self_mask[:, :, num_content:]
            last_masks = replace(masks, first=num_content, self_mask=query_mask)
        for layer, cache in zip(self.layers[:-1], caches[:-1], strict=True):
            x = layer(x, None, masks, cache)
        return self.layer_norm(self.layers[-1](x, None, last_masks, caches[-1]))


def _not_to_the_right(positions: Tensor, num_content: int) -> Tensor:
    """Which contents stand not to the right of each slot: `[batch, 1, slots, contents]`."""
    key_positions = positions[:, None, None, :num_content]
    return key_positions <= positions[:, None, :, None]
