"""Our tokenizers as files that transformers' own classes read.

| ours | files | class |
|---|---|---|
| `tokenizer.json` | the same, with the model's frame | PreTrainedTokenizerFast |
| `tokenizer.model` | `tokenizer.json`, made by transformers | PreTrainedTokenizerFast |
| `tokenizer.mapped.json`, a Marian model | `source.spm`, `target.spm`, `vocab.json` | MarianTokenizer |
| `tokenizer.mapped.json`, others (mBART, M2M-100) | `tokenizer.json`, its ids put in place | PreTrainedTokenizerFast |
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_pt.config.schema import Frame, ModelConfig
from janus_pt.convert.huggingface_frames import TOKENIZER_CONFIG
from janus_pt.tokenizer import FILE_NAMES, SPECIAL_TOKENS, Tokenizer
from janus_pt.utils.extras import require

EXTRA = "huggingface"
SENTENCEPIECE, TOKENIZERS, MAPPED = FILE_NAMES
UNLIKELY = 100.0
"""How far the log-probability of special tokens is below the rarest piece's."""


def write_huggingface_tokenizers(
    folder: Path, tokenizers: Sequence[Tokenizer], config: ModelConfig, model_type: str
) -> bool:
    """Write the tokenizer's files; False if no class of theirs cuts texts so: the original's must be copied.

    Args:
        tokenizers: the target's, then the source's if it has its own.
    """
    target, source = tokenizers[0], tokenizers[-1]
    if model_type == "marian" and target.file_name == source.file_name == MAPPED:
        _write_marian(folder, target, source, config)
        return True
    # Only Marian's class has two tokenizers.
    content = None if len(tokenizers) > 1 else _as_tokenizers(target)
    if content is None:
        return False
    content["post_processor"] = _post_processor(config.source_frame, target)
    (folder / TOKENIZERS).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "clean_up_tokenization_spaces": False,
        # Text that spells a special token is text, as with ours.
        "split_special_tokens": True,
        **_names(target),
    }
    _write_json(folder / TOKENIZER_CONFIG, settings)
    return True


def _write_marian(folder: Path, target: Tokenizer, source: Tokenizer, config: ModelConfig) -> None:
    for side, tokenizer in (("source", source), ("target", target)):
        (folder / f"{side}.spm").write_bytes(_sentencepiece_model(tokenizer))
    separate = config.source_vocab_size is not None
    _write_vocabulary(folder / "vocab.json", source)
    if separate:
        _write_vocabulary(folder / "target_vocab.json", target)
    settings = {
        "tokenizer_class": "MarianTokenizer",
        "separate_vocabs": separate,
        "model_max_length": config.max_positions,
        **_names(source),
    }
    _write_json(folder / TOKENIZER_CONFIG, settings)


def _sentencepiece_model(tokenizer: Tokenizer) -> bytes:
    return base64.b64decode(json.loads(tokenizer.content)["model"])


def _write_vocabulary(path: Path, tokenizer: Tokenizer) -> None:
    _write_json(path, {token: number for number, token in enumerate(tokenizer.vocabulary.tokens)})


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that there are, under their keys in `tokenizer_config.json`."""
    special = tokenizer.vocabulary.special
    return {
        f"{role}_token": tokenizer.vocabulary.tokens[special[role]]
        for role in SPECIAL_TOKENS
        if role in special
    }


def _as_tokenizers(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The content of a tokenizer.json that cuts texts as the tokenizer does; None if there is none."""
    if tokenizer.file_name == SENTENCEPIECE:
        return _from_sentencepiece(tokenizer.content, _names(tokenizer))
    content: dict[str, Any] = json.loads(tokenizer.content)
    if tokenizer.file_name == TOKENIZERS:
        return content
    model = base64.b64decode(content["model"])
    if content["segmenter"] == "tokenizers":
        return _with_ids(json.loads(model), tokenizer)
    return _with_ids(_from_sentencepiece(model, {}), tokenizer)


def _from_sentencepiece(model: bytes, names: dict[str, str]) -> dict[str, Any]:
    """What transformers makes of a SentencePiece model."""
    transformers = require("transformers", EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, SENTENCEPIECE).write_bytes(model)
        fast = transformers.PreTrainedTokenizerFast.from_pretrained(folder, **names)
    content: dict[str, Any] = json.loads(fast.backend_tokenizer.to_str())
    return content


def _with_ids(content: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The content with the tokenizer's ids; None if a piece has none: it would be cut otherwise."""
    tokens = tokenizer.vocabulary.tokens
    special = tokenizer.special_ids
    model = content["model"]
    scores = dict(model["vocab"])
    control = {token["content"] for token in content["added_tokens"]} | set(SPECIAL_TOKENS.values())
    if scores.keys() - control - set(tokens):
        return None
    if model["type"] == "Unigram":
        # Special tokens are in a unigram's vocabulary: so low that no text is cut into them.
        lowest = min(scores.values()) - UNLIKELY
        model["vocab"] = [
            [token, lowest if number in special else scores.get(token, lowest)]
            for number, token in enumerate(tokens)
        ]
        model["unk_id"] = tokenizer.unk_token_id
    else:
        model["vocab"] = {token: number for number, token in enumerate(tokens)}
    mask = tokenizer.mask_token_id
    content["added_tokens"] = [
        {
            "id": number,
            "content": tokens[number],
            "single_word": False,
            "lstrip": number == mask and tokenizer.vocabulary.mask_takes_space,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number in sorted(special)
    ]
    return content


def _post_processor(frame: Frame, tokenizer: Tokenizer) -> dict[str, Any]:
    """The frame of sources as `tokenizers` writes it, a `TemplateProcessing`."""
    tokens = tokenizer.vocabulary.tokens

    def listed(ids: Sequence[int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokens[token], "type_id": 0}} for token in ids]

    special = {}
    for token in (*frame.prefix, *frame.suffix):
        name = tokens[token]
        special[name] = {"id": name, "ids": [token], "tokens": [name]}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    before, behind = listed(frame.prefix), listed(frame.suffix)
    return {
        "type": "TemplateProcessing",
        "single": [*before, first, *behind],
        "pair": [*before, first, *behind, second, *behind],
        "special_tokens": special,
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
