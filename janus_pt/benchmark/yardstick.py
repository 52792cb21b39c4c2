"""The yardstick: a plain left-to-right Transformer step in bare torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.config.schema import ModelConfig
from janus_pt.model.feed_forward import ACTIVATIONS


class Yardstick(nn.Module):
    """`torch.nn.Transformer` of the same shape with one tied embedding.

    Dropout 0.1 wherever torch has it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, size)
        self.positions = nn.Embedding(config.max_positions, size)
        # The embedding is also the projection: with torch's default of 1 the logits were too large.
        nn.init.normal_(self.embed.weight, std=size**-0.5)
        self.transformer = nn.Transformer(
            d_model=size,
            nhead=config.num_attention_heads,
            num_encoder_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            dim_feedforward=config.ffn_hidden_size,
            dropout=config.dropout,
            # By function: torch knows only two of our names.
            activation=ACTIVATIONS[config.activation],
            batch_first=True,
            norm_first=config.pre_layer_norm,
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The smoothed cross-entropy of a target after its first token.

        Args:
            source: `[batch, source_length]`.
            target: `[batch, length + 1]`.
        """
        inputs, predicted = target[:, :-1], target[:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], device=inputs.device)
        hidden = self.transformer(
            self._embed(source), self._embed(inputs), tgt_mask=mask, tgt_is_causal=True
        )
        logits = hidden @ self.embed.weight.t()
        return F.cross_entropy(logits.flatten(0, 1), predicted.flatten(), label_smoothing=0.1)

    def _embed(self, tokens: Tensor) -> Tensor:
        # Scaled as in Vaswani et al. 2017: the embeddings' variance is 1 / size.
        scale = math.sqrt(self.embed.embedding_dim)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded: Tensor = self.embed(tokens) * scale + self.positions(positions)
        return embedded
