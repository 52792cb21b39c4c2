"""Transformer layers, post- or pre-norm. Parameter names follow fairseq and Hugging Face's BART."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig
from janus_pt.model.attention import Attention, Mask
from janus_pt.model.cost import AllReduces, Cost, Elements, Workload, linear_size
from janus_pt.model.dropout import add_dropped, dropout
from janus_pt.model.feed_forward import ACTIVATIONS, FEED_FORWARDS
from janus_pt.model.kv_cache import LayerCache
from janus_pt.model.layer_factory import Layers
from janus_pt.model.masks import EncoderMasks, LayerMasks
from janus_pt.model.norms import make_norm
from janus_pt.model.recompute import ATTENTION, FEED_FORWARD, recomputed


class Layer(nn.Module):
    """The parts that encoder and decoder layers share: self-attention and feed-forward network."""

    fc2: nn.Module

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self._hidden_size = config.hidden_size
        self.pre_norm = config.pre_layer_norm
        self.dropout = config.dropout
        self.activation = ACTIVATIONS[config.activation]
        self.activation_dropout = config.activation_dropout
        self.copy_to_tp_region = layers.copy_to_tp_region
        self.rows = layers.rows
        self.tp_rng_fork = layers.tp_rng_fork
        self.self_attn = Attention(config, layers)
        self.self_attn_layer_norm = make_norm(config)
        self.feed_forward = FEED_FORWARDS[config.feed_forward]
        for name, projection in self.feed_forward.projections(config, layers).items():
            self.add_module(name, projection)
        self.final_layer_norm = make_norm(config)
        self.recompute = "none"
        """The kind of sublayer that is computed again in the backward pass (`recompute.py`)."""

    def _add(self, x: Tensor, update: Tensor) -> Tensor:
        """The residual connection: `x` plus what a sublayer computed, after dropout."""
        probability = self.dropout if self.training else 0.0
        return add_dropped(x, update, probability, self.rows.share)

    def _sublayer(self, kind: str, compute: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """`compute(*inputs)`, its activations kept or not."""
        if self.recompute == kind and self.training:
            return recomputed(compute, *inputs)
        return compute(*inputs)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self._sublayer(FEED_FORWARD, self._compute_feed_forward, x)

    def _compute_feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.feed_forward.hidden(self, x)
        if self.training and self.activation_dropout > 0:
            # Each rank has other features here: their masks must differ.
            with self.tp_rng_fork():
                hidden = dropout(hidden, self.activation_dropout)
        return self.fc2(hidden)

    def _feed_forward_cost(self, rows: float) -> Cost:
        hidden_size, ffn_size = self.fc2.get_parameter("weight").shape
        dropped = ffn_size * rows if self.activation_dropout > 0 else 0.0
        fc2 = Cost(
            multiply_adds=linear_size(self.fc2) * rows,
            dropout_masks=Elements(sharded=dropped),
            forward=AllReduces(hidden_size * rows, 1),
        )
        network = self.feed_forward.cost(self, rows) + fc2
        return network.recomputable_as(FEED_FORWARD) + self._residual_cost(rows)

    def _residual_cost(self, rows: float) -> Cost:
        """Of a sublayer's dropout, residual connection and norm, which keeps its input."""
        elements = Elements(replicated=self._hidden_size * rows)
        return Cost(kept=elements, dropout_masks=elements if self.dropout > 0 else Elements())


class EncoderLayer(Layer):
    """Self-attention, feed-forward."""

    def forward(self, x: Tensor, masks: EncoderMasks) -> Tensor:
        """`x [batch, length, hidden]` to the same shape."""
        if self.pre_norm:
            h = self._add(x, self._self_attention(self.self_attn_layer_norm(x), masks))
            return self._add(h, self._feed_forward(self.final_layer_norm(h)))
        h = self.self_attn_layer_norm(self._add(x, self._self_attention(x, masks)))
        return self.final_layer_norm(self._add(h, self._feed_forward(h)))

    def _self_attention(self, x: Tensor, masks: EncoderMasks) -> Tensor:
        return self._sublayer(ATTENTION, self._attend, x, masks)

    def _attend(self, x: Tensor, masks: EncoderMasks) -> Tensor:
        # Three projections read `x`: its gradient is summed over the ranks once for all of them.
        x = self.copy_to_tp_region(x)
        queries, keys_values = self.self_attn.project(x, 0, x.shape[1], masks.rotation)
        return self.self_attn.read(queries, keys_values, masks.mask)

    def cost(self, work: Workload) -> Cost:
        """Of a forward and backward pass over the source tokens."""
        tokens = work.source_tokens
        attention = self.self_attn.cost(tokens, tokens, tokens, work.source_length)
        layer_input = Cost(layer_input=self._hidden_size * tokens)
        return (
            attention + self._residual_cost(tokens) + self._feed_forward_cost(tokens) + layer_input
        )


class DecoderLayer(Layer):
    """Self-attention on the content slots, by option a causal one behind it, cross-attention, feed-forward.

    Keys and values are made of the layer's input at the content slots alone: this is two-stream
    attention, queries and contents sharing all parameters.
    """

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__(config, layers)
        self.encoder_attn = Attention(config, layers)
        self.encoder_attn_layer_norm = make_norm(config)
        self.has_causal_attention = config.causal_self_attention
        if config.causal_self_attention:
            self.causal_attn = Attention(config, layers)
            self.causal_attn_layer_norm = make_norm(config)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None,
        masks: LayerMasks,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`x [batch, slots, hidden]` to the same shape, less the slots before `masks.first`.

        `encoder_out` has gone through `layers.copy_to_tp_layers`. `cache` replaces it and holds the
        earlier content slots.
        """
        # A causal self-attention reads all contents: the one before it must compute all slots.
        first = masks.first if masks.causal_mask is None else 0
        residual = self.rows.own_from(x, first)
        if self.pre_norm:
            attended = self._self_attention(self.self_attn_layer_norm(x), masks, first, cache)
            h = self._add(residual, attended)
            if masks.causal_mask is not None:
                residual = self.rows.own_from(h, masks.first)
                attended = self._causal_attention(self.causal_attn_layer_norm(h), masks, cache)
                h = self._add(residual, attended)
            normed = self.encoder_attn_layer_norm(h)
            h = self._add(h, self._cross_attention(normed, encoder_out, masks, cache))
            return self._add(h, self._feed_forward(self.final_layer_norm(h)))

        attended = self._self_attention(x, masks, first, cache)
        h = self.self_attn_layer_norm(self._add(residual, attended))
        if masks.causal_mask is not None:
            residual = self.rows.own_from(h, masks.first)
            attended = self._causal_attention(h, masks, cache)
            h = self.causal_attn_layer_norm(self._add(residual, attended))
        attended = self._cross_attention(h, encoder_out, masks, cache)
        h = self.encoder_attn_layer_norm(self._add(h, attended))
        return self.final_layer_norm(self._add(h, self._feed_forward(h)))

    def _self_attention(
        self, x: Tensor, masks: LayerMasks, first: int, cache: LayerCache | None
    ) -> Tensor:
        mask = masks.self_mask
        return self._sublayer(
            ATTENTION, self._read_contents, self.self_attn, x, masks, mask, first, cache
        )

    def _causal_attention(self, x: Tensor, masks: LayerMasks, cache: LayerCache | None) -> Tensor:
        mask = masks.causal_mask
        first = masks.first
        return self._sublayer(
            ATTENTION, self._read_contents, self.causal_attn, x, masks, mask, first, cache
        )

    def _read_contents(
        self,
        attention: Attention,
        x: Tensor,
        masks: LayerMasks,
        mask: Mask | None,
        first: int,
        cache: LayerCache | None,
    ) -> Tensor:
        """The slots of `x` from `first` on read its content slots and those in the cache."""
        x = self.copy_to_tp_region(x)
        queries, keys_values = attention.project(x, first, masks.num_content, masks.rotation)
        if cache is not None:
            keys_values = cache.extend(*keys_values)
        return attention.read(queries, keys_values, mask)

    def _cross_attention(
        self, x: Tensor, encoder_out: Tensor | None, masks: LayerMasks, cache: LayerCache | None
    ) -> Tensor:
        return self._sublayer(ATTENTION, self._read_source, x, encoder_out, masks, cache)

    def _read_source(
        self, x: Tensor, encoder_out: Tensor | None, masks: LayerMasks, cache: LayerCache | None
    ) -> Tensor:
        """The slots of `x` read the source. Source and target have positions of their own: no rotation."""
        x = self.copy_to_tp_region(x)
        if cache is None:
            assert encoder_out is not None
            return self.encoder_attn(
                x, self.encoder_attn.keys_values(encoder_out), masks.cross_mask
            )
        num_sources = cache.memory[0].shape[0]
        if x.shape[0] == num_sources:
            return self.encoder_attn(x, cache.memory, masks.cross_mask)
        # The slots of all copies of a source are queries to the same keys: no key is copied.
        folded = x.reshape(num_sources, -1, x.shape[-1])
        return self.encoder_attn(folded, cache.memory, masks.cross_mask).view_as(x)

    def cost(self, work: Workload, is_last: bool) -> Cost:
        """Of a forward and backward pass over the slots; the last layer computes those that predict."""
        slots, contents, length = work.slots, work.content_slots, work.content_length
        computed = work.predicted_slots if is_last else slots
        cost = Cost(layer_input=self._hidden_size * slots)
        attended = computed
        if self.has_causal_attention:
            # As in `forward`: what the causal self-attention reads, all slots have gone through.
            attended = slots
            cost += self.causal_attn.cost(slots, computed, contents, length)
            cost += self._residual_cost(computed)
        cost += self.self_attn.cost(slots, attended, contents, length)
        cost += self._residual_cost(attended)
        cost += self.encoder_attn.cost(computed, computed, work.source_tokens, work.source_length)
        cost += self._residual_cost(computed)
        return cost + self._feed_forward_cost(computed)
