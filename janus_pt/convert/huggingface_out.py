"""Our content-stream models in the form of Hugging Face's: names, `config.json`, settings of `generate`.

| our model | theirs |
|---|---|
| post-LN, embedding norm, learned positions | BART |
| pre-LN, embedding norm, learned positions | mBART |
| post-LN, no embedding norm, Marian's positions | Marian, with one or two vocabularies |
| pre-LN, no embedding norm, fairseq's sines, no output bias | M2M-100 |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.convert.huggingface import (
    ACTIVATIONS,
    FIELDS,
    KINDS,
    M2M100_PAD,
    M2M100_POSITIONS,
    POSITION_ROWS,
)
from janus_pt.convert.huggingface_weights import (
    BIAS,
    LENGTH_HEAD,
    POSITIONS,
    PREFIX,
    SHARED_TABLE,
    SOURCE_TABLE,
    TARGET_TABLE,
)
from janus_pt.generate.constraints import forbidden_in_ar
from janus_pt.generate.hypotheses import DEFAULT_MAX_LENGTH, most_tokens

QUERY_STREAM = (
    "P_AR is read off query slots, which their classes do not have: load the export with "
    "`import janus_pt.hf` and AutoModelForSeq2SeqLM"
)


def unsupported(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Keys of `config` whose values none of their classes computes, and why."""
    if config.ar_stream != "content":
        yield "ar_stream", QUERY_STREAM
    plain = {
        "norm": "layer_norm",
        "feed_forward": "plain",
        "embedding_projection": False,
        "causal_self_attention": False,
    }
    for key, only in plain.items():
        value = getattr(config, key)
        if value != only:
            yield key, f"their classes compute only {only!r}, but it is {value!r}"
    if config.key_value_heads != config.num_attention_heads:
        yield "num_key_value_heads", "their classes have as many as num_attention_heads"
    if len(config.target_frame.prefix) > 2:
        yield "target_prefix", "generate() starts with one token, and can force one more"
    yield from _kind_problems(config)


def _kind_problems(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Why no class has the model's norms, positions and vocabularies."""
    model_type = model_type_of(config)
    if model_type is None:
        shape = f"pre_layer_norm {config.pre_layer_norm}, "
        shape += f"embedding_layer_norm {config.embedding_layer_norm}"
        positions = ", ".join(
            f'"{kind.positions}" ({kind.name})'
            for kind in KINDS.values()
            if _norms(config) == (kind.pre_layer_norm, kind.embedding_layer_norm)
        )
        reason = f'with {shape} their classes have {positions}, not "{config.positions}"'
        if config.positions == "learned":
            # Loaded from a file, but lost when the library saves the model.
            reason += ", and keep no trained table"
        yield "positions", reason
        return
    kind = KINDS[model_type]
    if config.source_vocab_size is not None and model_type != "marian":
        yield "source_vocab_size", f"{kind.name} has one vocabulary"
    if config.output_bias and not kind.has_output_bias:
        yield "output_bias", f"{kind.name} has none"
    if model_type == "m2m_100" and config.pad_token_id != M2M100_PAD:
        yield "pad_token_id", M2M100_POSITIONS
    if kind.positions != "learned" and config.ar_position_offset:
        reason = f"{kind.name} computes its positions, from where ar_position_offset is 0"
        yield "ar_position_offset", reason


def _norms(config: ModelConfig) -> tuple[bool, bool]:
    return config.pre_layer_norm, config.embedding_layer_norm


def model_type_of(config: ModelConfig) -> str | None:
    """The `model_type` whose classes compute the model, if there is one."""
    for model_type, kind in KINDS.items():
        theirs = (kind.pre_layer_norm, kind.embedding_layer_norm, kind.positions)
        if theirs == (*_norms(config), config.positions):
            return model_type
    return None


def huggingface_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The content of `config.json`; `config` has nothing `unsupported`."""
    model_type = model_type_of(config)
    assert model_type is not None
    kind = KINDS[model_type]
    activations = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    values = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    values |= {
        "architectures": [kind.name],
        "model_type": model_type,
        "activation_function": activations[config.activation],
        "vocab_size": config.source_vocab_size or config.vocab_size,
        "decoder_attention_heads": config.num_attention_heads,
        "decoder_ffn_dim": config.ffn_hidden_size,
        "bos_token_id": config.bos_token_id,
        "decoder_start_token_id": config.target_frame.prefix[0],
        "forced_eos_token_id": config.eos_token_id,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "dtype": str(dtype).removeprefix("torch."),
        # Not read by the library, but by other programs that load its folders.
        "normalize_before": kind.pre_layer_norm,
        "add_final_layer_norm": kind.pre_layer_norm,
        "normalize_embedding": kind.embedding_layer_norm,
    }
    if model_type == "marian":
        values["decoder_vocab_size"] = config.vocab_size
        values["share_encoder_decoder_embeddings"] = config.source_vocab_size is None
    if model_type == "m2m_100":
        # In training alone; ours has none.
        values |= {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    return values


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """The content of `generation_config.json`: greedy search as our mode "ar" does it."""
    start, *forced = config.target_frame.prefix
    values: dict[str, Any] = {
        "decoder_start_token_id": start,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        # Not `suppress_tokens`: that must not name a token that is forced.
        "bad_words_ids": [[token] for token in forbidden_in_ar(config)],
        "early_stopping": True,
        "num_beams": 1,
        "min_new_tokens": len(forced) + 1,
        "max_new_tokens": len(forced) + min(DEFAULT_MAX_LENGTH, most_tokens(config)) + 1,
        "forced_eos_token_id": config.eos_token_id,
    }
    if forced:
        values["forced_bos_token_id"] = forced[0]
    return values


def huggingface_shapes(config: ModelConfig, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Names and shapes of the tensors in their file, from ours."""
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    theirs = huggingface_weights(config, meta)
    return {name: tuple(tensor.shape) for name, tensor in theirs}


def huggingface_weights(
    config: ModelConfig, state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Their names and tensors, from our state dict."""
    own_source = config.source_vocab_size is not None
    renamed = {
        "embed_tokens.weight": PREFIX + (TARGET_TABLE if own_source else SHARED_TABLE),
        "embed_source.weight": PREFIX + SOURCE_TABLE,
    }
    kind = KINDS[str(model_type_of(config))]
    for name, tensor in state.items():
        if name == LENGTH_HEAD:
            continue
        if name == "output.bias":
            yield BIAS, tensor[None]
        elif name in POSITIONS:
            yield PREFIX + name, _position_rows(name, tensor, config.ar_position_offset)
        else:
            yield renamed.get(name, PREFIX + name), tensor
    if kind.has_output_bias and not config.output_bias:
        yield BIAS, state["embed_tokens.weight"].new_zeros(1, config.vocab_size)


def _position_rows(name: str, table: Tensor, ar_position_offset: int) -> Tensor:
    """Two rows that are never read, then ours; the decoder's from where its first content sits."""
    shift = ar_position_offset if name.startswith("decoder") else 0
    rows = table.new_zeros(len(table) + POSITION_ROWS, table.shape[1])
    rows[POSITION_ROWS : len(rows) - shift] = table[shift:]
    return rows
