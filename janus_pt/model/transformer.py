"""The JANUS Transformer: one encoder, one decoder for all streams, one embedding for everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.model.blocks import Layer
from janus_pt.model.cost import Cost, Workload
from janus_pt.model.dropout import Seed
from janus_pt.model.encoder_decoder import Decoder, Encoder
from janus_pt.model.kv_cache import LayerCache
from janus_pt.model.layer_factory import PLAIN, Layers, mark_reads_all_rows
from janus_pt.model.masks import (
    DecoderMasks,
    EncoderMasks,
    make_encoder_masks,
    uses_block_masks,
)
from janus_pt.model.native import NativePasses
from janus_pt.model.output_bias import OutputBias, append_bias
from janus_pt.model.recompute import LAYER
from janus_pt.model.recorded import RecordedCalls
from janus_pt.packing.slots import POSITION, TOKEN, Slots, Source


class JanusTransformer(nn.Module):
    """Encoder-decoder Transformer over slots (Liang et al. 2022).

    `embed_tokens` serves source, target and the output projection; a source with a vocabulary of its own
    has `embed_source`. `layers` decides how the weights are sharded; by default they are not. Weights are
    torch's defaults until `initialize_weights` or `load_weights` gave others.
    """

    def __init__(self, config: ModelConfig, layers: Layers = PLAIN) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = layers.embedding(config.vocab_size, config.hidden_size)
        if config.source_vocab_size is not None:
            self.embed_source = layers.embedding(config.source_vocab_size, config.hidden_size)
        self.encoder = Encoder(config, layers)
        self.decoder = Decoder(config, layers)
        self.rows = layers.rows
        self.embed_length = nn.Linear(config.hidden_size, config.length_classes, bias=False)
        mark_reads_all_rows(self.embed_length)
        if config.output_bias:
            self.output = OutputBias(layers.vocab_rows(config.vocab_size))
        self.output_projection: Callable[[Tensor], Tensor] | None = None
        """Replaces `project` in decoding where the projection's weights are laid out otherwise."""
        self.recorded: RecordedCalls | None = None
        """Makes one call of each pass of decoding, where that is faster."""
        self.native: NativePasses | None = None
        """Computes the passes of decoding in place of the modules, where there is such code."""
        self.adapter: AdapterConfig | None = None
        """The adapters that `add_adapters` has put on its linear layers."""

    def recompute_activations(self, part: str) -> None:
        """Set what is computed again in the backward pass, as `parallel.activation_checkpointing` names it."""
        for stack in (self.encoder, self.decoder):
            stack.recompute = part == LAYER
            for _, layer in stack.numbered():
                cast(Layer, layer).recompute = part

    def seed_dropout(self, seed: Seed | None) -> None:
        """Make dropout of the next forward passes a function of `seed`; None leaves it to torch's generators."""
        self.encoder.seed = self.decoder.seed = seed

    def uses_block_masks(self, source: Source) -> bool:
        """Whether masks for this source, if it is packed, are FlexAttention's; others are dense."""
        dropout = self.config.attention_dropout if self.training else 0.0
        return uses_block_masks(source.tokens.device, dropout, self.config.head_size)

    def encoder_masks(self, source: Source, dtype: torch.dtype) -> EncoderMasks:
        """What the encoder's layers read."""
        return make_encoder_masks(self.config, source, dtype, self.uses_block_masks(source))

    def decoder_masks(self, slots: Slots, source: Source, dtype: torch.dtype) -> DecoderMasks:
        """What the decoder's layers read."""
        return DecoderMasks(self.config, slots, source, dtype, self.uses_block_masks(source))

    def embed_sources(self, tokens: Tensor) -> Tensor:
        """Embedded source tokens `[batch, source, hidden]`."""
        shared = self.config.source_vocab_size is None
        return self.embed_tokens(tokens) if shared else self.embed_source(tokens)

    def encode(self, source: Source) -> Tensor:
        """Encoder output `[rows, source, hidden]`, a rank's own rows; meaningless at padding."""
        if self.native is not None and source.layout is None:
            mask = None if source.is_padded is False else source.samples >= 0
            return self.native.encode(source.tokens, source.positions, mask)
        embedded = self.embed_sources(source.tokens)
        masks = self.encoder_masks(source, embedded.dtype)
        return self.encoder(embedded, source.positions, masks)

    def decode(self, slots: Slots, encoder_out: Tensor, source: Source) -> Tensor:
        """Hidden states `[1, slots, hidden]` in one pass, of the slots from `slots.first_predicting` on."""
        embedded = self.embed_tokens(slots[TOKEN])
        masks = self.decoder_masks(slots, source, encoder_out.dtype)
        return self.decoder(embedded, slots[POSITION], encoder_out, masks)

    def decode_step(
        self,
        tokens: Tensor,
        positions: Tensor,
        num_content: int,
        self_mask: Tensor | None,
        cross_mask: Tensor | None,
        caches: list[LayerCache],
    ) -> Tensor:
        """Some slots of sentences that are being decoded: hidden states `[rows, slots, hidden]`.

        Args:
            tokens, positions: `[rows, slots]`, content slots first. If queries follow, only they are returned.
            self_mask: `[rows, 1, slots, keys]`, keys being the caches' positions in reach; None: all may be read.
            cross_mask: `[sources, 1, 1, source]`; None: the sources have no padding.
            caches: one a layer; new content slots enter them if they keep any, query slots never do.
        """
        if self.native is not None:
            return self.native.decode_step(
                tokens, positions, num_content, self_mask, cross_mask, caches
            )
        embedded = self.embed_tokens(tokens)
        return self.decoder.decode_step(
            embedded, positions, num_content, self_mask, cross_mask, caches
        )

    def length_logits(self, encoder_out: Tensor, source: Source) -> Tensor:
        """Scores of the target lengths `[samples, length_classes]` from the mean of the encoder output."""
        encoder_out = self.rows.gather(encoder_out)
        if source.layout is None:
            is_token = source.samples >= 0
            total = (encoder_out * is_token.unsqueeze(-1).to(encoder_out.dtype)).sum(1)
        else:
            # A packed row: which of its tokens each sample has, [samples, row].
            samples = len(source.layout.indices[0])
            numbers = torch.arange(samples, device=source.samples.device)
            is_token = source.samples == numbers[:, None]
            total = is_token.to(encoder_out.dtype) @ encoder_out[0]
        # A sample of padding has no token; 1 keeps its mean from being NaN.
        count = is_token.sum(1, keepdim=True).clamp(min=1)
        return self.embed_length(total / count)

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores of hidden states; a sharded model needs an `output_projection`."""
        return (self.output_projection or self.project)(hidden)

    def project(self, hidden: Tensor) -> Tensor:
        """Scores of hidden states for the tokens of which the rows are here."""
        return F.linear(hidden, self.embed_tokens.get_parameter("weight"), self.output_bias)

    @property
    def output_bias(self) -> Tensor | None:
        """The output bias `[vocab]`, if the model has one."""
        return self.output.bias if self.config.output_bias else None

    def output_weight(self) -> Tensor:
        """The output projection as losses read it, `[vocab, hidden]` or more: see `output_bias.py`."""
        table = self.embed_tokens.get_parameter("weight")
        bias = self.output_bias
        return table if bias is None else append_bias(table, bias)

    def head_cost(self, work: Workload) -> Cost:
        """Of the decoder's last norm and the output projection; losses are not counted."""
        table = self.embed_tokens.get_parameter("weight")
        projection = Cost(multiply_adds=table.numel() * work.predicted_slots)
        return self.decoder.norm_cost(work.slots) + projection

    def forward(self, source: Source, slots: Slots) -> tuple[Tensor, Tensor]:
        """`decode`'s hidden states `[1, slots, hidden]` and length scores `[samples, length_classes]`."""
        encoder_out = self.encode(source)
        return self.decode(slots, encoder_out, source), self.length_logits(encoder_out, source)
