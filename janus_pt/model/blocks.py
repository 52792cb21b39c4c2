"""Transformer layers, post- or pre-LayerNorm. Parameter names follow fairseq and Hugging Face's BART."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig
from janus_pt.model.attention import Attention, LayerCache, Mask
from janus_pt.model.dropout import add_dropped, dropout
from janus_pt.model.layer_factory import Layers
from janus_pt.model.masks import DecoderMasks

LAYER_NORM_EPS = 1e-5
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """A LayerNorm over the hidden size."""
    return nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention's and the feed-forward network's parts."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self.pre_layer_norm = config.pre_layer_norm
        self.dropout = config.dropout
        self.activation = ACTIVATIONS[config.activation]
        self.activation_dropout = config.activation_dropout
        self.copy_to_tp_region, self.tp_rng_fork = layers.copy_to_tp_region, layers.tp_rng_fork
        self.self_attn = self._attention(config, layers)
        self.self_attn_layer_norm = layer_norm(config)
        self.fc1 = layers.column(config.hidden_size, config.ffn_hidden_size)
        self.fc2 = layers.row(config.ffn_hidden_size, config.hidden_size)
        self.final_layer_norm = layer_norm(config)

    @staticmethod
    def _attention(config: ModelConfig, layers: Layers) -> Attention:
        return Attention(
            config.hidden_size, config.num_attention_heads, config.attention_dropout, layers
        )

    def _residual(
        self, x: Tensor, norm: nn.LayerNorm, sublayer: Callable[[Tensor], Tensor], skip: int = 0
    ) -> Tensor:
        """`x` plus what the sublayer makes of it, normalised before or after; the sublayer leaves out `skip` slots."""
        kept = x[:, skip:] if skip else x
        dropped = self.dropout if self.training else 0.0
        if self.pre_layer_norm:
            return add_dropped(kept, sublayer(norm(x)), dropped)
        return cast(Tensor, norm(add_dropped(kept, sublayer(x), dropped)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        if self.training and self.activation_dropout > 0:
            with self.tp_rng_fork():
                x = dropout(x, self.activation_dropout)
        return self.fc2(x)


class EncoderLayer(Layer):
    """Self-attention, feed-forward."""

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """`x [batch, length, hidden]` to the same shape."""

        def self_attention(h: Tensor) -> Tensor:
            h = self.copy_to_tp_region(h)
            return self.self_attn(h, self.self_attn.keys_values(h), mask)

        x = self._residual(x, self.self_attn_layer_norm, self_attention)
        return self._residual(x, self.final_layer_norm, self._feed_forward)


class DecoderLayer(Layer):
    """Self-attention on the content slots, by option a causal one behind it, cross-attention, feed-forward.

    Keys and values are made of the layer's input at the content slots alone: this is two-stream attention,
    queries and contents sharing all parameters.
    """

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__(config, layers)
        self.encoder_attn = self._attention(config, layers)
        self.encoder_attn_layer_norm = layer_norm(config)
        if config.causal_self_attention:
            self.causal_attn = self._attention(config, layers)
            self.causal_attn_layer_norm = layer_norm(config)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None,
        reading: DecoderMasks,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x [batch, slots, hidden]` to the same shape, less the slots before `reading.first`: they are only read.

        `encoder_out` has gone through `layers.copy_to_tp_region`. `cache` replaces it and carries
        earlier content slots.
        """
        count, first, cross_mask = reading.num_content, reading.first, reading.cross_mask

        def contents(
            attention: Attention, mask: Mask | None, skip: int
        ) -> Callable[[Tensor], Tensor]:
            def sublayer(h: Tensor) -> Tensor:
                h = self.copy_to_tp_region(h)
                keys_values = attention.keys_values(h[:, :count] if count < h.shape[1] else h)
                if cache is not None:
                    keys_values = cache.extend(*keys_values)
                return attention(h[:, skip:] if skip else h, keys_values, mask)

            return sublayer

        def cross_attention(h: Tensor) -> Tensor:
            h = self.copy_to_tp_region(h)
            if cache is None:
                assert encoder_out is not None
                return self.encoder_attn(h, self.encoder_attn.keys_values(encoder_out), cross_mask)
            # Slots of all copies of a source are so many queries to the same keys.
            folded = h.reshape(len(cache.memory[0]), -1, h.shape[-1])
            return self.encoder_attn(folded, cache.memory, cross_mask).view_as(h)

        skip = first if reading.causal_mask is None else 0
        x = self._residual(
            x, self.self_attn_layer_norm, contents(self.self_attn, reading.self_mask, skip), skip
        )
        if reading.causal_mask is not None:
            causal = contents(self.causal_attn, reading.causal_mask, first)
            x = self._residual(x, self.causal_attn_layer_norm, causal, first)
        x = self._residual(x, self.encoder_attn_layer_norm, cross_attention)
        return self._residual(x, self.final_layer_norm, self._feed_forward)
