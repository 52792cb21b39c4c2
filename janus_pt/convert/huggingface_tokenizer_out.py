"""Our tokenizers as files that transformers' own classes read.

| ours | files | class |
|---|---|---|
| `tokenizer.json` | the same, with the model's frame | PreTrainedTokenizerFast |
| `tokenizer.model` | `tokenizer.json`, made by transformers | PreTrainedTokenizerFast |
| `tokenizer.mapped.json`, a Marian model | `source.spm`, `target.spm`, `vocab.json` | MarianTokenizer |

Other mapped tokenizers (mBART's, M2M-100's) came from a folder of theirs, whose files go with the model.
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


def write_huggingface_tokenizers(
    folder: Path, tokenizers: Sequence[Tokenizer], config: ModelConfig, model_type: str
) -> bool:
    """Write the tokenizer's files; False if the original's must be copied instead.

    Args:
        tokenizers: the target's, then the source's if it has its own.
    """
    target, source = tokenizers[0], tokenizers[-1]
    if model_type == "marian" and target.file_name == source.file_name == MAPPED:
        _write_marian(folder, target, source, config)
        return True
    # Only Marian's class has two tokenizers.
    if len(tokenizers) > 1 or target.file_name == MAPPED:
        return False
    content = json.loads(_as_tokenizers(target))
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


def _as_tokenizers(tokenizer: Tokenizer) -> bytes:
    """A tokenizer.json that cuts texts as the tokenizer does."""
    if tokenizer.file_name == TOKENIZERS:
        return tokenizer.content
    transformers = require("transformers", EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / SENTENCEPIECE)
        fast = transformers.PreTrainedTokenizerFast.from_pretrained(folder, **_names(tokenizer))
    text: str = fast.backend_tokenizer.to_str()
    return text.encode()


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
