"""Tiny random models and a tiny tokenizer for tests of decoding and export."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source, pack_slots, pack_sources, pad_sources

SPECIALS = 5
"""pad, bos, eos, unk, mask: ids 0 to 4."""
SHAPE = dict(
    vocab_size=24, hidden_size=16, ffn_hidden_size=24, num_attention_heads=2, encoder_layers=1, decoder_layers=2,
    max_positions=24, length_classes=20,
)  # fmt: skip

MODERN = dict(
    norm="rms_norm", feed_forward="gated", activation="silu", positions="rotary", pre_layer_norm=True,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
"""Values of the model's kinds of layers that differ from a BART's, all at once."""


def tiny_model(
    seed: int = 0, dtype: torch.dtype = torch.float64, **shape: object
) -> JanusTransformer:
    """A random model whose predictions depend on everything they should, in evaluation mode."""
    model = JanusTransformer(ModelConfig.model_validate({**SHAPE, **shape})).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(
                    noise * (3.0 if "positions" in name else 1.0 if "embed" in name else 0.7)
                )
    return model.eval()


def random_sources(
    seed: int, count: int, vocab_size: int = 24, longest: int = 9
) -> list[list[int]]:
    """Ordinary tokens between bos and eos, of mixed lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    return [[1, *rng.integers(SPECIALS, vocab_size, n).tolist(), 2] for n in lengths]


def as_source(sequences: Sequence[Sequence[int]]) -> Source:
    """A batch of encoder inputs."""
    return pad_sources([np.array(s) for s in sequences], 0)


def full_pass(model: JanusTransformer, source: Sequence[int], *parts: np.ndarray) -> Tensor:
    """Log-probabilities `[slots, vocab]` of one sentence's slots in one uncached pass; content first, then queries."""
    batch = pack_sources([np.array(source)])
    slots = pack_slots(np.concatenate(parts), len(parts[0]))
    with torch.no_grad():
        hidden = model.decode(slots, model.encode(batch), batch)[0]
        return torch.log_softmax(model.logits(hidden), dim=-1)


@cache
def tokenizer_bytes(vocab_size: int = 300) -> bytes:
    """A SentencePiece model with byte fallback and the project's special ids."""
    words = ("slot", "query", "content", "mask", "beam", "length", "token", "pass")
    lines = [f"the {a} reads the {b} and writes a {c}" for a in words for b in words for c in words]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, model_type="bpe",
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, control_symbols=["<mask>"], byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
