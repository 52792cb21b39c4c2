"""Hugging Face's BART, mBART, Marian and M2M-100: what their `config.json` means in our words.

Every key is used, must have the one value that we compute, or is known to change nothing; any other
is refused by name. Source: `transformers/models/*/configuration_*.py` of 5.24, and older files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from janus_pt.config.schema import Frame, ModelConfig
from janus_pt.convert.huggingface_generation import GENERATION_KEYS
from janus_pt.model.limits import model_problems
from janus_pt.utils.errors import UserError

CONFIG = "config.json"
POSITION_ROWS = 2
"""Rows of a learned position table before position 0, which are never read."""
M2M100_PAD = 1
M2M100_POSITIONS = f"M2M-100 counts positions from it; here they are as with {M2M100_PAD}"
ENCODER_DECODER_SIZES = ("attention_heads", "ffn_dim")
"""Sizes that are given for both stacks and must agree here."""

FIELDS = {
    "hidden_size": "d_model",
    "ffn_hidden_size": "encoder_ffn_dim",
    "num_attention_heads": "encoder_attention_heads",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "activation": "activation_function",
    "max_positions": "max_position_embeddings",
    "scale_embedding": "scale_embedding",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "init_std": "init_std",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}
"""Our key -> theirs, where the value is the same."""
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Their names of activations -> ours."""


@dataclass(frozen=True)
class Kind:
    """A model type of theirs.

    Attributes:
        name: of the class with an output projection; `base` is the one without.
        has_output_bias: whether its files have `final_logits_bias`.
        defaults: of keys that older files may lack.
    """

    name: str
    base: str
    pre_layer_norm: bool
    embedding_layer_norm: bool
    positions: Literal["learned", "marian", "sinusoidal"]
    has_output_bias: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)


_DEFAULTS = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
}
_M2M100_DEFAULTS = {
    **_DEFAULTS,
    "activation_function": "relu",
    "scale_embedding": True,
    "attention_dropout": 0.1,
}
KINDS = {
    "bart": Kind(
        "BartForConditionalGeneration", "BartModel", False, True, "learned", defaults=_DEFAULTS
    ),
    "mbart": Kind(
        "MBartForConditionalGeneration", "MBartModel", True, True, "learned", defaults=_DEFAULTS
    ),
    "marian": Kind("MarianMTModel", "MarianModel", False, False, "marian", defaults=_DEFAULTS),
    "m2m_100": Kind(
        "M2M100ForConditionalGeneration",
        "M2M100Model",
        True,
        False,
        "sinusoidal",
        has_output_bias=False,
        defaults=_M2M100_DEFAULTS,
    ),
}
"""By `model_type`."""

USED = {
    *FIELDS.values(),
    *(f"{stack}_{size}" for stack in ("encoder", "decoder") for size in ENCODER_DECODER_SIZES),
    "architectures",
    "model_type",
    "vocab_size",
    "decoder_vocab_size",
    "share_encoder_decoder_embeddings",
    "bos_token_id",
    "decoder_start_token_id",
    "tokenizer_class",
}
"""Keys that are read."""
FIXED: dict[str, Any] = {
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "add_bias_logits": False,
    "do_blenderbot_90_layernorm": False,
    "pruned_heads": {},
    "cross_attention_hidden_size": None,
    "chunk_size_feed_forward": 0,
}
"""Keys with the only value that we compute; they may be absent."""
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
"""Second names of keys: the values must agree."""
HARMLESS = {
    "_name_or_path",
    "_num_labels",
    "classif_dropout",
    "classifier_dropout",
    "cls_token_id",
    "decoder_layerdrop",
    "dtype",
    "encoder_layerdrop",
    "extra_pos_embeddings",
    "finetuning_task",
    "force_bos_token_to_be_generated",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "prefix",
    "problem_type",
    "return_dict",
    "save_step",
    "sep_token_id",
    "task_specific_params",
    "torch_dtype",
    "torchscript",
    "total_flos",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
}
"""Keys that do not change what the model computes."""


def kind_of(values: Mapping[str, Any], origin: str) -> Kind:
    """The kind of a `config.json`.

    Raises:
        UserError: it is of another architecture.
    """
    model_type = values.get("model_type")
    kind = KINDS.get(model_type) if isinstance(model_type, str) else None
    if kind is None:
        raise UserError(
            f"{origin}: model_type: {model_type!r} is not one of those that can be converted: "
            f"{', '.join(KINDS)}"
        )
    architectures = values.get("architectures") or [kind.name]
    if architectures not in ([kind.name], [kind.base]):
        raise UserError(
            f"{origin}: architectures: {architectures} is another model; only {kind.name} and "
            f"{kind.base} can be converted"
        )
    return kind


def check_keys(values: Mapping[str, Any], origin: str) -> Kind:
    """The kind of a `config.json`, all of whose keys are known and have values that we compute.

    Raises:
        UserError: names the first key of which that is not so.
    """
    kind = kind_of(values, origin)
    for key, reason in _problems(values, kind):
        raise UserError(f"{origin}: {key}: {reason}")
    return kind


def model_config(
    values: Mapping[str, Any],
    unk: int,
    mask: int | None,
    frames: tuple[Frame, Frame],
    output_bias: bool,
    origin: str,
) -> ModelConfig:
    """Our configuration of a model.

    Args:
        values: the content of `config.json`, which `check_keys` has checked.
        unk, mask: ids of the tokenizer; None: it has no mask symbol, and unk is it.
        frames: around sources and around targets (`huggingface_frames.py`).
        output_bias: whether the files have one.
        origin: names `config.json` in messages.

    Raises:
        UserError: a value is not possible.
    """
    kind = kind_of(values, origin)
    source_frame, target_frame = frames
    known = {**kind.defaults, **values}
    ours = {key: known[theirs] for key, theirs in FIELDS.items()}
    ours["activation"] = ACTIVATIONS[known["activation_function"]]
    ours["vocab_size"], ours["source_vocab_size"] = vocab_sizes(values)
    bos = values.get("bos_token_id")
    # Marian has no bos; its files name none, or eos.
    has_bos = bos not in (None, known["eos_token_id"])
    fields = dict(
        **ours,
        pre_layer_norm=kind.pre_layer_norm,
        embedding_layer_norm=kind.embedding_layer_norm,
        positions=kind.positions,
        output_bias=output_bias,
        ar_stream="content",
        ar_position_offset=0,
        bos_token_id=bos if has_bos else known["pad_token_id"],
        unk_token_id=unk,
        mask_token_id=unk if mask is None else mask,
        source_prefix=source_frame.prefix,
        source_suffix=source_frame.suffix,
        target_prefix=target_frame.prefix,
    )
    return _checked(fields, origin)


def vocab_sizes(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Rows of the target's token table, and of the source's if it has its own (else None)."""
    if values.get("share_encoder_decoder_embeddings", True):
        return values["vocab_size"], None
    return values.get("decoder_vocab_size") or values["vocab_size"], values["vocab_size"]


def _checked(fields: dict[str, Any], origin: str) -> ModelConfig:
    """The configuration; messages name their keys."""
    try:
        config = ModelConfig.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0])
        value = f"{problem['msg'].lower()}, but is {problem['input']!r}"
        raise UserError(f"{origin}: {FIELDS.get(key, key)}: {value}") from None
    for path, reason in model_problems(config):
        key = str(path[-1])
        raise UserError(f"{origin}: {FIELDS.get(key, key)}: {reason}")
    return config


def _problems(values: Mapping[str, Any], kind: Kind) -> Iterator[tuple[str, str]]:
    """Keys with values that we do not compute, unknown and missing keys, each with the reason."""
    fixed = FIXED | {
        "normalize_before": kind.pre_layer_norm,
        "add_final_layer_norm": kind.pre_layer_norm,
        "normalize_embedding": kind.embedding_layer_norm,
        "static_position_embeddings": kind.positions != "learned",
    }
    known = USED | HARMLESS | GENERATION_KEYS | fixed.keys() | ALIASES.keys()
    for key in sorted(values.keys() - known):
        yield key, f"unknown, so it cannot be converted; its value is {values[key]!r}"
    for key, only in fixed.items():
        if values.get(key, only) != only:
            yield key, f"must be {only!r} to be converted, but is {values[key]!r}"
    needed = {*FIELDS.values(), "vocab_size"}
    for key in sorted(needed - values.keys() - kind.defaults.keys()):
        yield key, "is missing"
    for key, other in ALIASES.items():
        # A file may have the second name alone; then the first is missing, and named above.
        if key in values and values[key] != values[other]:
            yield key, f"{values[key]!r} differs from {other}, {values[other]!r}"
    yield from _shape_problems({**kind.defaults, **values})


def _shape_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for size in ENCODER_DECODER_SIZES:
        encoder, decoder = values[f"encoder_{size}"], values.get(f"decoder_{size}")
        if encoder != decoder:
            reason = f"{decoder!r} differs from encoder_{size}, {encoder!r}"
            yield f"decoder_{size}", f"{reason}; both stacks must have the same here"
    activation = values["activation_function"]
    if activation not in tuple(ACTIVATIONS):
        yield "activation_function", f"must be one of {', '.join(ACTIVATIONS)}, not {activation!r}"
    if values["model_type"] == "m2m_100" and values["pad_token_id"] != M2M100_PAD:
        yield "pad_token_id", f"is {values['pad_token_id']!r}: {M2M100_POSITIONS}"
    source, target = values["vocab_size"], values.get("decoder_vocab_size")
    shares = values.get("share_encoder_decoder_embeddings", True)
    if shares and target not in (None, source):
        yield "decoder_vocab_size", f"{target!r} differs from vocab_size, with one shared table"
