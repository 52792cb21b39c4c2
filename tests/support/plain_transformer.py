"""The whole model written down once more in plain operations, from its weights by name.

For tests alone: loops over heads, a dense matrix of who reads whom, no cache, no kernels, and none of
the package's functions. It knows every kind of norm, feed-forward network, activation and positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.model.transformer import JanusTransformer

EPS = 1e-5
TOKEN, POSITION, SEGMENT, RANK, UNTIL, START, STOP = range(7)
"""The fields of a slot, in the order of `docs/reference/method.md`."""


class PlainTransformer:
    """Computes what a model should, one packed row at a time; all slots, also those that do not predict."""

    def __init__(self, model: JanusTransformer) -> None:
        self.config: ModelConfig = model.config
        self.weights = dict(model.named_parameters())

    def forward(self, source: Tensor, slots: Tensor, num_content: int) -> Tensor:
        """Hidden states `[slots, hidden]`.

        source: `[tokens, 3]`: token, position, sample (-1: padding). slots: `[slots, 7]`; the first
        `num_content` of them are keys.
        """
        tokens, positions, samples = source.unbind(1)
        same_sample = (samples[:, None] == samples[None, :]) & (samples >= 0)
        encoded = self.embed("encoder", "embed_tokens", tokens, positions)
        for index in range(self.config.encoder_layers):
            layer = f"encoder.layers.{index}"
            encoded = self.self_attention(layer, "self_attn", encoded, same_sample, positions)
            encoded = self.feed_forward(layer, encoded)
        encoded = self.last_norm("encoder", encoded)

        reads = may_read(slots, slots[:num_content])
        cross = slots[:, SEGMENT, None] // 2 == samples[None, :]
        cross &= (slots[:, SEGMENT, None] >= 0) & (samples >= 0)
        x = self.embed("decoder", "embed_tokens", slots[:, TOKEN], slots[:, POSITION])
        for index in range(self.config.decoder_layers):
            layer = f"decoder.layers.{index}"
            x = self.self_attention(layer, "self_attn", x, reads, slots[:, POSITION])
            x = self.sublayer(
                f"{layer}.encoder_attn_layer_norm",
                x,
                lambda h, layer=layer: self.attention(f"{layer}.encoder_attn", h, encoded, cross),
            )
            x = self.feed_forward(layer, x)
        return self.last_norm("decoder", x)

    def embed(self, stack: str, table: str, tokens: Tensor, positions: Tensor) -> Tensor:
        config = self.config
        x = self.weights[f"{table}.weight"][tokens]
        if config.scale_embedding:
            x = x * math.sqrt(config.hidden_size)
        if config.positions == "learned":
            x = x + self.weights[f"{stack}.embed_positions.weight"][positions]
        elif config.positions == "sinusoidal":
            half = config.hidden_size // 2
            rates = [10000 ** (-i / (half - 1)) for i in range(half)]
            angles = (positions[:, None] + 2) * torch.tensor(rates, dtype=torch.float64)
            x = x + torch.cat((angles.sin(), angles.cos()), 1).float().double()
        elif config.positions == "marian":
            size = config.hidden_size
            rates = [10000 ** (-2 * (j // 2) / size) for j in range(size)]
            angles = positions[:, None] * torch.tensor(rates, dtype=torch.float64)
            x = x + torch.cat((angles[:, ::2].sin(), angles[:, 1::2].cos()), 1).float().double()
        return self.norm(f"{stack}.layernorm_embedding", x) if config.embedding_layer_norm else x

    def sublayer(self, norm: str, x: Tensor, compute: object) -> Tensor:
        if self.config.pre_layer_norm:
            return x + compute(self.norm(norm, x))  # type: ignore[operator]
        return self.norm(norm, x + compute(x))  # type: ignore[operator]

    def self_attention(
        self, layer: str, name: str, x: Tensor, reads: Tensor, positions: Tensor
    ) -> Tensor:
        def compute(h: Tensor) -> Tensor:
            keys = reads.shape[1]
            return self.attention(f"{layer}.{name}", h, h[:keys], reads, positions)

        return self.sublayer(f"{layer}.{name}_layer_norm", x, compute)

    def attention(
        self, name: str, x: Tensor, memory: Tensor, reads: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        heads = self.config.num_attention_heads
        key_heads = self.config.num_key_value_heads or heads
        size = self.config.hidden_size // heads
        q = self.linear(f"{name}.q_proj", x)
        k = self.linear(f"{name}.k_proj", memory)
        v = self.linear(f"{name}.v_proj", memory)
        outputs = []
        for head in range(heads):
            key_head = head * key_heads // heads
            query = q[:, head * size : (head + 1) * size]
            key = k[:, key_head * size : (key_head + 1) * size]
            value = v[:, key_head * size : (key_head + 1) * size]
            if positions is not None and self.config.positions == "rotary":
                query = rotated(query, positions)
                key = rotated(key, positions[: len(key)])
            scores = query @ key.t() / math.sqrt(size)
            # Slots of padding read nothing: their rows are not compared.
            weights = scores.masked_fill(~reads, -math.inf).softmax(-1).nan_to_num()
            outputs.append(weights @ value)
        return self.linear(f"{name}.out_proj", torch.cat(outputs, -1))

    def feed_forward(self, layer: str, x: Tensor) -> Tensor:
        def compute(h: Tensor) -> Tensor:
            hidden = self.linear(f"{layer}.fc1", h)
            if self.config.feed_forward == "gated":
                hidden = self.activation(self.linear(f"{layer}.gate_proj", h)) * hidden
            else:
                hidden = self.activation(hidden)
            return self.linear(f"{layer}.fc2", hidden)

        return self.sublayer(f"{layer}.final_layer_norm", x, compute)

    def activation(self, x: Tensor) -> Tensor:
        if self.config.activation == "relu":
            return x * (x > 0)
        if self.config.activation == "silu":
            return x / (1 + (-x).exp())
        if self.config.activation == "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return x * (1 + inner.tanh()) / 2
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def scores(self, hidden: Tensor) -> Tensor:
        scores = hidden @ self.weights["embed_tokens.weight"].t()
        return scores + self.weights["output.bias"] if self.config.output_bias else scores

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].t() + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        if self.config.norm == "rms_norm":
            return (
                x
                / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
                * self.weights[f"{name}.weight"]
            )
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def last_norm(self, stack: str, x: Tensor) -> Tensor:
        return self.norm(f"{stack}.layer_norm", x) if self.config.pre_layer_norm else x


def may_read(slots: Tensor, keys: Tensor) -> Tensor:
    """Which keys each slot reads, pair by pair: those of its segment with a rank in one of two intervals."""
    reads = torch.zeros(len(slots), len(keys), dtype=torch.bool)
    for row, slot in enumerate(slots.tolist()):
        for column, key in enumerate(keys.tolist()):
            known = 0 <= key[RANK] < slot[UNTIL]
            interval = slot[START] <= key[RANK] < slot[STOP]
            reads[row, column] = key[SEGMENT] == slot[SEGMENT] and (known or interval)
    return reads


def rotated(head: Tensor, positions: Tensor) -> Tensor:
    """Su et al. (2021), with complex numbers: elements i and i + size / 2 are one, turned by its angle."""
    half = head.shape[-1] // 2
    numbers = torch.complex(head[:, :half], head[:, half:])
    rates = torch.tensor([10000 ** (-i / half) for i in range(half)], dtype=torch.float64)
    angles = positions.double()[:, None] * rates
    turned = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)
