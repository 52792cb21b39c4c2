"""Whether the parts of an exported model fit each other, checked before memory is taken for them.

An export may come from anywhere: a config that asks for a billion layers, or weights that are not
the config's, must end in a message, not in a full memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from janus_pt.config.schema import ROTARY_POSITIONS, ModelConfig
from janus_pt.export.stream import Shapes
from janus_pt.model.limits import frame_problems, variant_problems
from janus_pt.model.meta import build_on_meta
from janus_pt.packing.slots import MASK_RANK
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import check_content

FREE_ELEMENTS = 1 << 24
"""Tables up to this size need no weights of their size: a sinusoidal one is computed."""
FLOATING_TYPES = {"F64", "F32", "F16", "BF16"}
"""In safetensors' names."""


def stored_shapes(path: Path) -> Shapes:
    """Shapes of the tensors in a safetensors file.

    By its header alone, which the library checks against the file's size.

    Raises:
        UserError: the file is cut short or of another kind, or its tensors are not of one floating
            type.
    """
    check_content(path)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                stored = file.get_slice(name)
                shapes[name] = tuple(stored.get_shape())
                dtypes.add(stored.get_dtype())
    except SafetensorError as error:
        raise UserError(
            f"{path}: cut short or not safetensors ({error}); copy or export the model again"
        ) from error
    if len(dtypes) != 1 or not dtypes <= FLOATING_TYPES:
        raise UserError(
            f"{path}: should hold floating-point tensors of one type, has "
            f"{', '.join(sorted(dtypes))}"
        )
    return shapes


def check_shapes(origin: str, shapes: Shapes, config: ModelConfig) -> None:
    """Raise `UserError` unless `shapes` are exactly the shapes of `config`'s model.

    Args:
        origin: names the weights in the message.
    """
    _check_sizes(origin, shapes, config)
    state = build_on_meta(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    names = {*shapes, *expected}
    wrong = sorted(name for name in names if shapes.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{origin}: {len(wrong)} tensors do not fit the model in the config; "
            f"{name} is {shapes.get(name, 'missing')}, should be {expected.get(name, 'absent')}"
        )


def _check_sizes(origin: str, shapes: Shapes, config: ModelConfig) -> None:
    """Refuse a config that asks for far more than the weights hold.

    First of all: a module for each of a billion layers fills the memory, on the meta device, too.
    """
    stored_elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    allowed_elements = max(stored_elements, FREE_ELEMENTS)
    # Every matrix of the model has one of these sizes on one side, hidden_size on the other.
    most_rows = max(
        config.vocab_size,
        config.source_vocab_size or 0,
        config.hidden_size,
        config.ffn_hidden_size,
        config.length_classes,
        # Rotations have no table that would take memory.
        0 if config.positions in ROTARY_POSITIONS else config.max_positions,
    )
    layers = config.encoder_layers + config.decoder_layers
    is_too_large = (
        most_rows * config.hidden_size > allowed_elements
        or layers > len(shapes)
        or config.max_positions > MASK_RANK
    )
    if is_too_large:
        raise UserError(f"{origin}: the config describes a far larger model than these weights")
    # The modules take it for granted, and would fail without naming the key.
    size, heads = config.hidden_size, config.num_attention_heads
    if size % heads:
        raise UserError(
            f"{origin}: the config's num_attention_heads ({heads}) does not divide hidden_size "
            f"({size})"
        )
    for path, reason in (*variant_problems(config), *frame_problems(config)):
        raise UserError(f"{origin}: the config's {path[-1]}: {reason}")


def check_tokenizers(tokenizers: Sequence[Tokenizer], config: ModelConfig) -> None:
    """Raise `UserError` unless these are the model's tokenizers.

    Args:
        tokenizers: the target's, then the source's if it has one of its own. The two may have the
            same tokens: then the model has one vocabulary, and they cut texts differently.
    """
    target, *sources = tokenizers
    source_size = config.source_vocab_size
    if len(sources) > 1 or (source_size is not None and not sources):
        vocabularies = "one vocabulary" if source_size is None else "two vocabularies"
        given = "1 tokenizer is" if not sources else f"{len(tokenizers)} tokenizers are"
        raise UserError(f"{target.origin}: the model has {vocabularies}, but {given} given")
    _check_tokenizer(target, config, config.vocab_size)
    for source in sources:
        _check_tokenizer(source, config, source_size or config.vocab_size)
        if source_size is None and not source.shares_ids(target):
            raise UserError(
                f"{source.origin}: has other tokens than {target.origin}; set "
                f"model.source_vocab_size to {source.vocab_size}, for two vocabularies"
            )


def _check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, vocab_size: int) -> None:
    """Vocabulary size and special ids must agree."""
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{tokenizer.origin}: its vocab_size is {tokenizer.vocab_size}, the model's is "
            f"{vocab_size}; it belongs to another model"
        )
    for name in wrong_ids(tokenizer, config):
        raise UserError(
            f"{tokenizer.origin}: its {name} is {getattr(tokenizer, name)}, the model's is "
            f"{getattr(config, name)}; it belongs to another model"
        )


def wrong_ids(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, int]:
    """Special ids of the model that are not the tokenizer's, by key; and what they should be."""
    wrong = {}
    for name, value in tokenizer.model_ids.items():
        model_id = getattr(config, name)
        # The authors' models use unk as their mask symbol.
        mask_is_unk = name == "mask_token_id" and model_id == tokenizer.unk_token_id
        if model_id != value and not mask_is_unk:
            wrong[name] = value
    return wrong
