"""Whether the parts of an exported model fit each other, found out before memory is taken for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from janus_pt.config.schema import ModelConfig
from janus_pt.model.meta import build_on_meta
from janus_pt.packing.slots import MASK_RANK
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError

FREE_ELEMENTS = 1 << 24
"""Tables up to this size need no file of their size beside them: a sinusoidal one is computed."""

Shapes = Mapping[str, tuple[int, ...]]


def stored_shapes(path: Path) -> Shapes:
    """Shapes of the tensors in a safetensors file, by its header, which the library checks against the file's size.

    Raises:
        UserError: the file is cut short or of another kind, or its tensors are not of one floating type.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {part.get_dtype() for part in slices.values()}
    except SafetensorError as error:
        raise UserError(
            f"{path}: cut short or not safetensors ({error}); copy or export the model again"
        ) from error
    if len(dtypes) != 1 or not dtypes <= {"F64", "F32", "F16", "BF16"}:
        raise UserError(
            f"{path}: should hold floating-point tensors of one type, has {', '.join(sorted(dtypes))}"
        )
    return shapes


def check_shapes(origin: str, found: Shapes, config: ModelConfig) -> None:
    """Raise `UserError` unless `found` has exactly the tensors of `config`'s model; `origin` names the weights."""
    _check_sizes(origin, found, config)
    expected = {
        name: tuple(tensor.shape) for name, tensor in build_on_meta(config).state_dict().items()
    }
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{origin}: {len(wrong)} tensors are not those of the model in the config; "
            f"{name} is {found.get(name, 'missing')}, should be {expected.get(name, 'absent')}"
        )


def _check_sizes(origin: str, found: Shapes, config: ModelConfig) -> None:
    """Refuse a config that asks for more than the weights hold before even its outline is made."""
    elements = max(sum(torch.Size(shape).numel() for shape in found.values()), FREE_ELEMENTS)
    rows = max(
        config.vocab_size,
        config.source_vocab_size or 0,
        config.hidden_size,
        config.ffn_hidden_size,
        config.length_classes,
        config.max_positions,
    )
    layers = config.encoder_layers + config.decoder_layers
    if (
        rows * config.hidden_size > elements
        or layers > len(found)
        or config.max_positions > MASK_RANK
    ):
        raise UserError(f"{origin}: the config describes a far larger model than these weights")
    size, heads = config.hidden_size, config.num_attention_heads
    if size % heads:
        raise UserError(
            f"{origin}: the config's num_attention_heads ({heads}) does not divide hidden_size ({size})"
        )


def check_tokenizers(
    origins: Sequence[str], tokenizers: Sequence[Tokenizer], config: ModelConfig
) -> None:
    """Raise `UserError` unless these are the model's: the target's, then the source's if it has one of its own."""
    wanted = 1 if config.source_vocab_size is None else 2
    if len(tokenizers) != wanted:
        raise UserError(
            f"{origins[0]}: the model has {'one vocabulary' if wanted == 1 else 'two vocabularies'}, but "
            f"{len(tokenizers)} tokenizer{'s are' if len(tokenizers) > 1 else ' is'} given"
        )
    for origin, tokenizer, vocab_size in zip(
        origins, tokenizers, (config.vocab_size, config.source_vocab_size), strict=False
    ):
        _check_tokenizer(origin, tokenizer, config, vocab_size)


def _check_tokenizer(
    origin: str, tokenizer: Tokenizer, config: ModelConfig, vocab_size: int | None
) -> None:
    """Vocabulary and special ids must agree; a model may use unk as its mask symbol."""
    if tokenizer.vocab_size != vocab_size:
        reason = f"its vocab_size is {tokenizer.vocab_size}, the model's is {vocab_size}"
        raise UserError(f"{origin}: {reason}; it belongs to another model")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "mask_token_id"):
        model, text = getattr(config, name), getattr(tokenizer, name)
        if model != text and (name, model) != ("mask_token_id", tokenizer.unk_token_id):
            raise UserError(
                f"{origin}: its {name} is {text}, the model's is {model}; it belongs to another model"
            )
