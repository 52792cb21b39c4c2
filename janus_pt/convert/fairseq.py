"""The authors' models, trained with fairseq, as ours: translation and BART-JANUS.

Names are fairseq's already, except the shared embedding and the length table. Position tables start
with two rows that no token reads (fairseq's padding offset), which are dropped. P_AR is read off
query slots, and the decoder's mask symbol is unk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from janus_pt.config.schema import ModelConfig
from janus_pt.convert.fairseq_file import FairseqCheckpoint
from janus_pt.convert.fairseq_settings import MUST_BE_OFF, SIDED, is_known, is_off
from janus_pt.utils.errors import UserError

UNUSED_POSITION_ROWS = 2
SOURCE_TABLE, TARGET_TABLE = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
OUTPUT_TABLES = ("decoder.output_projection.weight", "decoder.embed_out")
LENGTH_TABLE = "decoder.embed_length.weight"
POSITIONS = "embed_positions.weight"
DROPPED = ("encoder.version", "decoder.version", ".embed_positions._float_tensor")
"""Endings of names without a meaning: a format's number, a buffer that only has a type."""
BOS, PAD, EOS, UNK = range(4)
"""Ids in every dictionary of fairseq."""
OFFSETS = {"janus_pretrain_loss": 1, "janus_loss": 0, "ar_loss": 0, "cmlm_loss": 0}
"""By the authors' losses: `model.ar_position_offset`. In their translation data the AR query that
predicts token p sits at p - 1, in their pretraining data at p."""
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_accurate": "gelu_tanh", "swish": "silu"}


def unsupported(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Options that our model cannot express, that are unknown, or missing; and why."""
    for key, value in settings.items():
        if key in MUST_BE_OFF and not is_off(value):
            yield key, f"is {value!r}: our model has nothing like it"
        elif not is_known(key):
            reason = f"{value!r} is of an option that this converter does not know"
            yield key, f"{reason}; if it does not change the model, add --ignore {key}"
    for name in SIDED:
        sides = [f"{side}_{name}" for side in ("encoder", "decoder")]
        missing = [side for side in sides if side not in settings]
        if missing:
            yield missing[0], "is missing"
            continue
        encoder, decoder = (settings[side] for side in sides)
        if encoder != decoder:
            yield sides[1], f"is {decoder!r}, the encoder's {encoder!r}: must be equal"
    for name in ("decoder_input_dim", "decoder_output_dim"):
        size = settings.get("decoder_embed_dim")
        if settings.get(name, size) != size:
            yield name, f"is {settings[name]!r}, decoder_embed_dim {size!r}: must be equal"
    for key, known in (("criterion", OFFSETS), ("activation_fn", ACTIVATIONS)):
        if settings.get(key, next(iter(known))) not in known:
            yield key, f"is {settings[key]!r}; only {', '.join(known)} can be converted"
    for key in ("criterion", "encoder_layers", "decoder_layers"):
        if key not in settings:
            yield key, "is missing"


def convert_fairseq(checkpoint: FairseqCheckpoint) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights, as ours, of a checkpoint that has nothing `unsupported`.

    Raises:
        UserError: it has no length table, an output projection of its own, or positions that are
            neither learned nor computed.
    """
    settings, weights = checkpoint.settings, dict(checkpoint.weights)
    if LENGTH_TABLE not in weights:
        reason = "is missing: only models of the authors' JANUS code have this table"
        raise UserError(f"model: {LENGTH_TABLE} {reason}, and only they can be converted")
    target_table, source_table = _take_tables(weights)
    longest = min(settings.get(f"max_{side}_positions", 1024) for side in ("source", "target"))
    state = our_state(weights, longest)
    state["embed_tokens.weight"] = target_table
    if source_table is not None:
        state["embed_source.weight"] = source_table
    sizes = {
        "vocab_size": len(target_table),
        "source_vocab_size": None if source_table is None else len(source_table),
        "length_classes": len(state["embed_length.weight"]),
        "max_positions": longest,
    }
    return _model_config(settings, sizes), state


def _model_config(settings: Mapping[str, Any], sizes: Mapping[str, Any]) -> ModelConfig:
    """The configuration that the options describe; `sizes` are in the weights."""
    is_learned = settings["encoder_learned_pos"]
    values = {
        **sizes,
        "hidden_size": settings["encoder_embed_dim"],
        "ffn_hidden_size": settings["encoder_ffn_embed_dim"],
        "num_attention_heads": settings["encoder_attention_heads"],
        "encoder_layers": settings["encoder_layers"],
        "decoder_layers": settings["decoder_layers"],
        "pre_layer_norm": settings["encoder_normalize_before"],
        "activation": ACTIVATIONS[settings.get("activation_fn", "relu")],
        "positions": "learned" if is_learned else "sinusoidal",
        "scale_embedding": not settings.get("no_scale_embedding", False),
        "embedding_layer_norm": settings.get("layernorm_embedding", False),
        "dropout": settings.get("dropout", 0.1),
        "attention_dropout": settings.get("attention_dropout", 0.0),
        "activation_dropout": settings.get("activation_dropout", 0.0),
        "ar_position_offset": OFFSETS[settings["criterion"]],
        "ar_stream": "query",
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "unk_token_id": UNK,
        # The decoder reads unk where a token is masked.
        "mask_token_id": UNK,
    }
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        reason = f"{problem['msg']}, but the checkpoint's options say {problem['input']!r}"
        raise UserError(f"model.{problem['loc'][0]}: {reason}") from None


def our_state(weights: Mapping[str, Tensor], longest: int | None = None) -> dict[str, Tensor]:
    """Tensors, or their gradients, under our names; tables of tokens keep theirs.

    Args:
        longest: rows that are kept of a position table.
    """
    state = {}
    for name, tensor in weights.items():
        if name.endswith(DROPPED):
            continue
        # fairseq numbers positions from padding_idx + 1: no token reads the rows before.
        if name.endswith(POSITIONS):
            tensor = tensor[UNUSED_POSITION_ROWS:][:longest]
        state[name.replace(LENGTH_TABLE, "embed_length.weight")] = tensor
    return state


def _take_tables(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """The table of targets, and of sources if they have their own; all of these leave `weights`.

    fairseq stores shared tables under each of their names, or under one.
    """
    tables = {
        name: weights.pop(name)
        for name in (SOURCE_TABLE, TARGET_TABLE, *OUTPUT_TABLES)
        if name in weights
    }
    if SOURCE_TABLE not in tables:
        raise UserError(f"model: {SOURCE_TABLE} is missing")
    source = tables[SOURCE_TABLE]
    target = tables.get(TARGET_TABLE, source)
    for name in OUTPUT_TABLES:
        if not torch.equal(tables.get(name, target), target):
            reason = f"differs from {TARGET_TABLE}: our output projection is the embedding itself"
            raise UserError(f"model: {name} {reason}; such models cannot be converted")
    return target, None if torch.equal(source, target) else source
