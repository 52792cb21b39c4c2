"""More or fewer special tokens at the end of a vocabulary, so that it fits a model's token table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from janus_pt.tokenizer import HUGGING_FACE, MASK, Tokenizer, read_tokenizer
from janus_pt.utils.errors import UserError

Json = dict[str, Any]


def fitted(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """The tokenizer with `size` tokens: fillers are added, or special tokens removed, at the end.

    Raises:
        UserError: a token that texts may have would have to go.
    """
    fillers = [f"<unused{number}>" for number in range(tokenizer.vocab_size, size)]
    if fillers:
        return with_special(tokenizer, fillers)
    surplus = set(range(size, tokenizer.vocab_size))
    if not surplus:
        return tokenizer
    if not surplus <= tokenizer.special_ids:
        raise UserError(
            f"{tokenizer.origin}: has {tokenizer.vocab_size} tokens, the model {size} rows for them"
        )
    values: Json = json.loads(tokenizer.content)
    if tokenizer.file_name != HUGGING_FACE:
        values["tokens"] = values["tokens"][:size]
        values["codes"] = [code for code in values["codes"] if code in values["tokens"]]
        return _read(values, tokenizer)
    model = values["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {
            piece: number for piece, number in model["vocab"].items() if number < size
        }
    else:
        model["vocab"] = model["vocab"][:size]
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < size]
    return _read(values, tokenizer)


def with_mask(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with `<mask>` as its last token, if it has none."""
    return with_special(tokenizer, [MASK] if tokenizer.mask_token_id is None else [])


def with_special(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """The tokenizer with special tokens behind the last; not for SentencePiece models themselves."""
    values: Json = json.loads(tokenizer.content)
    if tokenizer.file_name != HUGGING_FACE:
        values["tokens"] += names
        values["codes"] += [name for name in names if name != MASK]
        return _read(values, tokenizer)
    for number, name in enumerate(names, tokenizer.vocab_size):
        token = dict(id=number, content=name, single_word=False, lstrip=name == MASK, rstrip=False)
        values["added_tokens"].append({**token, "normalized": False, "special": True})
    return _read(values, tokenizer)


def _read(values: Json, tokenizer: Tokenizer) -> Tokenizer:
    return read_tokenizer(json.dumps(values).encode(), tokenizer.origin)
