"""The special tokens that Hugging Face's tokenizers put around sources and targets.

| model | source | decoder reads |
|---|---|---|
| BART | `bos … eos` | `start bos …`, the start being eos |
| Marian | `… eos` | `start …`, the start being pad |
| mBART | `… eos LANGUAGE` | `LANGUAGE …` |
| mBART-50, M2M-100, NLLB | `LANGUAGE … eos` | `start LANGUAGE …`, the start being eos |

What the decoder reads behind the start is what `forced_bos_token_id` forces. BART's files may lack
that key: then the model writes bos itself, having been trained to, and here it is forced as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from janus_pt.config.schema import Frame
from janus_pt.utils.errors import UserError

TOKENIZER_CONFIG = "tokenizer_config.json"
LANGUAGE_LAST = ("MBartTokenizer", "MBartTokenizerFast")
"""Tokenizers that put the language behind the source, and start targets with it."""
LANGUAGE_FIRST = (
    "MBart50Tokenizer",
    "MBart50TokenizerFast",
    "M2M100Tokenizer",
    "NllbTokenizer",
    "NllbTokenizerFast",
)
"""Tokenizers that put the language before the source, and force it as the target's first token."""


@dataclass(frozen=True)
class Languages:
    """The languages' tokens, as the command line gives them; None: not given."""

    source: str | None = None
    target: str | None = None


@dataclass(frozen=True)
class Files:
    """What a folder's JSON files say.

    Attributes:
        config, tokenizer_config: the content of these files.
        generation: of `generation_config.json`, or what older files have of it in `config.json`.
        origin: the folder, for messages.
    """

    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    generation: Mapping[str, Any]
    origin: str


def frames(
    files: Files, languages: Languages, token_id: Callable[[str], int | None]
) -> tuple[Frame, Frame]:
    """What stands around sources and around targets.

    Args:
        token_id: the id of a token of the tokenizer; None if it has none of this name.

    Raises:
        UserError: a language is missing, unknown, or given to a model that has none.
    """
    model_type = files.config["model_type"]
    eos = (files.config["eos_token_id"],)
    start = files.generation.get("decoder_start_token_id")
    if model_type not in ("mbart", "m2m_100"):
        if languages != Languages():
            raise UserError(
                f"{files.origin}: {model_type} models have no languages: leave them out"
            )
        if start is None:
            raise UserError(f"{files.origin}: decoder_start_token_id: is missing")
        if model_type == "marian":
            return Frame((), eos), Frame((start,), eos)
        bos = files.config["bos_token_id"]
        forced = files.generation.get("forced_bos_token_id")
        return Frame((bos,), eos), Frame((start, bos if forced is None else forced), eos)

    source = _source_language(files, languages, token_id)
    if _puts_language_last(files):
        target = _target_language(files, languages, token_id, "decoder_start_token_id")
        return Frame((), (*eos, source)), Frame((target,), eos)
    target = _target_language(files, languages, token_id, "forced_bos_token_id")
    return Frame((source,), eos), Frame((eos[0] if start is None else start, target), eos)


def _puts_language_last(files: Files) -> bool:
    name = files.tokenizer_config.get("tokenizer_class", files.config.get("tokenizer_class"))
    if name not in LANGUAGE_LAST + LANGUAGE_FIRST:
        known = ", ".join(LANGUAGE_LAST + LANGUAGE_FIRST)
        raise UserError(
            f"{files.origin}: {TOKENIZER_CONFIG}: tokenizer_class: {name!r} does not say where "
            f"languages stand; it must be one of: {known}"
        )
    # NLLB's tokenizers once did as mBART's.
    return name in LANGUAGE_LAST or bool(files.tokenizer_config.get("legacy_behaviour"))


def _source_language(
    files: Files, languages: Languages, token_id: Callable[[str], int | None]
) -> int:
    name = languages.source or files.tokenizer_config.get("src_lang")
    if name is None:
        raise UserError(f"{files.origin}: its sources name a language: give --source-language")
    return _id(name, "--source-language", files, token_id)


def _target_language(
    files: Files, languages: Languages, token_id: Callable[[str], int | None], key: str
) -> int:
    """The language that is given, or that `key` names, or the tokenizer's."""
    trained = files.generation.get(key)
    name = languages.target or files.tokenizer_config.get("tgt_lang")
    if languages.target is None and trained is not None:
        return int(trained)
    if name is None:
        raise UserError(f"{files.origin}: its targets name a language: give --target-language")
    return _id(name, "--target-language", files, token_id)


def _id(name: str, flag: str, files: Files, token_id: Callable[[str], int | None]) -> int:
    # M2M-100 writes its languages with underscores, but names them without.
    for spelling in (name, f"__{name}__"):
        found = token_id(spelling)
        if found is not None:
            return found
    raise UserError(f"{files.origin}: {flag}: the tokenizer has no token {name!r}")
