"""The yardstick: a plain left-to-right Transformer step in bare torch, as anybody would write it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig


class Yardstick(nn.Module):
    """`torch.nn.Transformer` of the same shape with one tied embedding: dropout 0.1 wherever torch has it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, size)
        self.positions = nn.Embedding(config.max_positions, size)
        nn.init.normal_(self.embed.weight, std=size**-0.5)
        self.transformer = nn.Transformer(
            size, config.num_attention_heads, config.encoder_layers, config.decoder_layers, config.ffn_hidden_size,
            config.dropout, config.activation, batch_first=True, norm_first=config.pre_layer_norm,
        )  # fmt: skip

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The smoothed cross-entropy of `target [batch, length + 1]` after its first token."""
        read, predicted = target[:, :-1], target[:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(read.shape[1], device=read.device)
        hidden = self.transformer(
            self._embed(source), self._embed(read), tgt_mask=mask, tgt_is_causal=True
        )
        logits = hidden @ self.embed.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), label_smoothing=0.1)

    def _embed(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        embedded: Tensor = self.embed(tokens) * math.sqrt(
            self.embed.embedding_dim
        ) + self.positions(places)
        return embedded
