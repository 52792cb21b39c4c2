"""Our models as folders of CTranslate2, which decodes P_AR with quantised weights on CPU and GPU.

The library's specification of a Transformer is filled directly: no other form lies between.
Sources: `ctranslate2/specs/transformer_spec.py` and `attention_spec.py` of 4.8.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus_pt.config.schema import ROTARY_POSITIONS, ModelConfig
from janus_pt.generate.constraints import forbidden_in_ar
from janus_pt.model.norms import NORM_EPS
from janus_pt.model.positions import LONGEST_WAVE, make_table
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.extras import require

EXTRA = "ctranslate2"
QUANTIZATIONS = (
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
    "float32",
)
"""Types that weights can be stored in, under CTranslate2's names."""
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "silu": "SWISH"}
"""CTranslate2's names of our activations."""
FORBIDDEN_LOGIT = -1e4
"""Added to the logits of symbols that must not be written; float16 can hold it."""
TRAINING_ONLY = ("embed_length.weight",)
"""Weights that P_AR does not read."""


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """The pieces of `tokenizer` by id, as a CTranslate2 vocabulary spells its tokens."""
    return tokenizer.vocabulary.tokens


def write_ctranslate2(
    folder: Path,
    config: ModelConfig,
    state: dict[str, Tensor],
    vocabularies: Sequence[list[str]],
    quantization: str | None = None,
) -> None:
    """Write `config.json`, `model.bin` and the vocabularies of a CTranslate2 model into `folder`.

    Args:
        config: one that has nothing `unsupported`.
        state: weights of `JanusTransformer(config)`, whole. It is emptied on the way: a weight is
            in memory once.
        vocabularies: the target's tokens by id, then the source's if it has its own vocabulary.
        quantization: one of `QUANTIZATIONS`; by default the weights keep their type, except
            float64, which becomes float32.

    Raises:
        UserError: CTranslate2 is not installed, or has no place for a weight, which is named.
    """
    spec = _empty_spec(config)
    _Filler(config, state).fill(spec)
    target, *sources = vocabularies
    spec.register_source_vocabulary(sources[0] if sources else target)
    spec.register_target_vocabulary(target)
    _describe(spec.config, config, vocabularies)
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))


def unsupported(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Keys of `config` whose values CTranslate2 cannot compute, and why."""
    if config.ar_stream != "content":
        reason = "P_AR is read off query slots, which CTranslate2's decoder does not have"
        yield "ar_stream", f'{reason}: only models with "content" can be converted'
    if config.causal_self_attention:
        yield (
            "causal_self_attention",
            "such a model has no P_AR, and CTranslate2 computes only that",
        )
    if config.embedding_projection:
        reason = "CTranslate2 adds the embeddings of tokens and positions, it cannot join them"
        yield "embedding_projection", f"{reason}: such models cannot be converted"
    if config.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        yield "activation", f'CTranslate2 has no "{config.activation}"; it has {known}'


def _empty_spec(config: ModelConfig) -> Any:
    """A specification of the model's shape without weights."""
    specs = require("ctranslate2.specs", EXTRA)
    shape: dict[str, Any] = dict(
        num_heads=config.num_attention_heads,
        pre_norm=config.pre_layer_norm,
        activation=specs.common_spec.Activation[ACTIVATIONS[config.activation]],
        layernorm_embedding=config.embedding_layer_norm,
        ffn_glu=config.feed_forward == "gated",
        rms_norm=config.norm == "rms_norm",
    )
    if config.key_value_heads != config.num_attention_heads:
        shape["num_heads_kv"] = config.key_value_heads
    if config.positions in ROTARY_POSITIONS:
        # All dimensions of a head; element i is rotated with element i + head_size / 2.
        shape |= dict(rotary_dim=0, rotary_interleave=False, rotary_base=LONGEST_WAVE)
    transformer = specs.transformer_spec
    return transformer.TransformerSpec(
        transformer.TransformerEncoderSpec(config.encoder_layers, **shape),
        transformer.TransformerDecoderSpec(config.decoder_layers, **shape),
    )


def given_with_texts(
    config: ModelConfig, vocabularies: Sequence[list[str]]
) -> dict[str, list[str]]:
    """Tokens that the caller of CTranslate2 must give with every text, where there are any.

    It adds bos and eos to sources, and a first token to targets, but nothing else.

    Returns:
        `source_prefix`, `source_suffix` and `target_prefix`: CTranslate2's argument of that name.
    """
    target, source = vocabularies[0], vocabularies[-1]
    frame = config.source_frame
    texts = {
        "source_prefix": [] if _adds_bos(config) else [source[token] for token in frame.prefix],
        "source_suffix": [] if _adds_eos(config) else [source[token] for token in frame.suffix],
        "target_prefix": [target[token] for token in config.target_frame.prefix[1:]],
    }
    return {name: tokens for name, tokens in texts.items() if tokens}


def _adds_bos(config: ModelConfig) -> bool:
    """Whether CTranslate2 puts all that stands before a source there."""
    return config.source_frame.prefix == (config.bos_token_id,)


def _adds_eos(config: ModelConfig) -> bool:
    """Whether CTranslate2 puts all that stands behind a source there."""
    return config.source_frame.suffix == (config.eos_token_id,)


def _describe(description: Any, config: ModelConfig, vocabularies: Sequence[list[str]]) -> None:
    """Fill the folder's `config.json`: how inputs begin and end, by tokens of the vocabulary."""
    target = vocabularies[0]
    description.unk_token = target[config.unk_token_id]
    description.bos_token = target[config.bos_token_id]
    description.eos_token = target[config.eos_token_id]
    description.decoder_start_token = target[config.target_frame.prefix[0]]
    description.add_source_bos = _adds_bos(config)
    description.add_source_eos = _adds_eos(config)
    description.layer_norm_epsilon = NORM_EPS
    # CTranslate2 does not read it: for whoever finds the folder.
    description.add_attribute("give_with_texts", given_with_texts(config, vocabularies))


class _Filler:
    """Moves weights from a state dict into a specification."""

    def __init__(self, config: ModelConfig, state: dict[str, Tensor]) -> None:
        self._config = config
        self._state = state

    def fill(self, spec: Any) -> None:
        """All of the model. `UserError` names a weight that has no place in the specification."""
        target_table = self._take("embed_tokens.weight")
        source_table = target_table
        if self._config.source_vocab_size is not None:
            source_table = self._take("embed_source.weight")
        spec.encoder.embeddings[0].weight = source_table
        spec.decoder.embeddings.weight = target_table
        spec.decoder.projection.weight = target_table
        spec.decoder.projection.bias = self._output_bias()
        self._fill_stack("encoder", spec.encoder, first_row=0)
        self._fill_stack("decoder", spec.decoder, first_row=self._config.ar_position_offset)
        for name in self._state.keys() - set(TRAINING_ONLY):
            raise UserError(f"{name}: CTranslate2's Transformer has no place for this weight")

    def _take(self, *names: str) -> Tensor:
        """The tensors of these names, one below the other; they leave the state dict."""
        tensors = [self._state.pop(name) for name in names]
        joined = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        # CTranslate2 knows no float64.
        return (joined.float() if joined.dtype == torch.float64 else joined).contiguous()

    def _output_bias(self) -> Tensor:
        """Of the output projection: symbols that must not be written cannot win."""
        bias = torch.zeros(self._config.vocab_size)
        if self._config.output_bias:
            bias += self._take("output.bias")
        bias[forbidden_in_ar(self._config)] += FORBIDDEN_LOGIT
        return bias

    def _fill_stack(self, side: str, spec: Any, first_row: int) -> None:
        """The encoder or the decoder; `first_row` of its position table is its first token's."""
        config = self._config
        spec.scale_embeddings = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        if config.positions not in ROTARY_POSITIONS:
            rows = self._position_table(side)[first_row:]
            spec.position_encodings.encodings = rows.contiguous()
        if config.embedding_layer_norm:
            self._fill_norm(spec.layernorm_embedding, f"{side}.layernorm_embedding")
        if config.pre_layer_norm:
            self._fill_norm(spec.layer_norm, f"{side}.layer_norm")
        for index, layer in enumerate(spec.layer):
            self._fill_layer(layer, f"{side}.layers.{index}")

    def _position_table(self, side: str) -> Tensor:
        """Rows of the side's position table, stored or computed."""
        name = f"{side}.embed_positions.weight"
        if name in self._state:
            return self._take(name)
        table = make_table(self._config)
        assert table is not None
        rows: Tensor = table(torch.arange(self._config.max_positions))
        return rows

    def _fill_layer(self, spec: Any, name: str) -> None:
        """One layer. Self-attention keeps three projections in one matrix, cross-attention two."""
        projections = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
        self._fill_linear(spec.self_attention.linear[0], *projections)
        self._fill_linear(spec.self_attention.linear[1], f"{name}.self_attn.out_proj")
        self._fill_norm(spec.self_attention.layer_norm, f"{name}.self_attn_layer_norm")
        if hasattr(spec, "attention"):
            query, *key_value = (f"{name}.encoder_attn.{part}_proj" for part in "qkv")
            self._fill_linear(spec.attention.linear[0], query)
            self._fill_linear(spec.attention.linear[1], *key_value)
            self._fill_linear(spec.attention.linear[2], f"{name}.encoder_attn.out_proj")
            self._fill_norm(spec.attention.layer_norm, f"{name}.encoder_attn_layer_norm")
        if self._config.feed_forward == "gated":
            # CTranslate2's first projection is the one with the activation.
            self._fill_linear(spec.ffn.linear_0, f"{name}.gate_proj")
            self._fill_linear(spec.ffn.linear_0_noact, f"{name}.fc1")
        else:
            self._fill_linear(spec.ffn.linear_0, f"{name}.fc1")
        self._fill_linear(spec.ffn.linear_1, f"{name}.fc2")
        self._fill_norm(spec.ffn.layer_norm, f"{name}.final_layer_norm")

    def _fill_linear(self, spec: Any, *names: str) -> None:
        spec.weight = self._take(*(f"{name}.weight" for name in names))
        spec.bias = self._take(*(f"{name}.bias" for name in names))

    def _fill_norm(self, spec: Any, name: str) -> None:
        spec.gamma = self._take(f"{name}.weight")
        if self._config.norm == "layer_norm":
            spec.beta = self._take(f"{name}.bias")
