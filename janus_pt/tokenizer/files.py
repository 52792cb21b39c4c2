"""Tokenizer files, and how one is read: by its content, whatever its name."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, ValidationError

from janus_pt.tokenizer.huggingface_segmenter import HuggingFaceSegmenter
from janus_pt.tokenizer.segmenter import Segmenter
from janus_pt.tokenizer.sentencepiece_segmenter import SentencePieceSegmenter
from janus_pt.tokenizer.tokenizer import Tokenizer
from janus_pt.tokenizer.vocabulary import MASK, SPECIAL_TOKENS, Vocabulary
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import check_content

SENTENCEPIECE, HUGGING_FACE, MAPPED = "tokenizer.model", "tokenizer.json", "tokenizer.mapped.json"
FILE_NAMES = (SENTENCEPIECE, HUGGING_FACE, MAPPED)
"""A tokenizer's name in the folders that we write, by its kind."""
SOURCE_PREFIX = "source_"
"""Of the name of the sources' tokenizer, where they have their own."""
FOLDER_FILE_NAMES = (*FILE_NAMES, *(SOURCE_PREFIX + name for name in FILE_NAMES))
MAX_TOKENIZER_BYTES = 64 * 2**20
"""A larger file is refused before it is read; a tokenizer.json of 50,000 tokens has 4 MB."""


class MappedFile(BaseModel):
    """`tokenizer.mapped.json`: a segmenter whose pieces have ids of their own.

    Attributes:
        segmenter: the library of `model`.
        model: the file of that library, byte for byte (base64 in JSON).
        tokens: a token's place is its id. Tokens that are no pieces of the model are never encoded.
        codes: tokens that are no text, such as languages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["janus_pt tokenizer"] = "janus_pt tokenizer"
    version: Literal[1] = 1
    segmenter: Literal["sentencepiece", "tokenizers"]
    model: Base64Bytes
    tokens: list[str]
    codes: list[str] = []
    mask_takes_space: bool = True


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer file of any kind.

    Raises:
        UserError: it is missing, too large, of no known kind, damaged, or lacks a special token.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the tokenizer's file in it")
    if not path.is_file():
        raise UserError(
            f"{path}: no such tokenizer file (`janus-pt prep train-tokenizer` makes one)"
        )
    return read_tokenizer(read_bounded(path), str(path))


def read_bounded(path: Path) -> bytes:
    """The content of a tokenizer's file; `UserError` if it is missing or absurdly large."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    size = path.stat().st_size
    if size > MAX_TOKENIZER_BYTES:
        raise UserError(
            f"{path}: {size:,} bytes is no tokenizer, the limit is {MAX_TOKENIZER_BYTES:,}"
        )
    check_content(path)
    return path.read_bytes()


def read_tokenizer(content: bytes, origin: str = "the tokenizer") -> Tokenizer:
    """The tokenizer of a file's content.

    Args:
        origin: names it in messages.

    Raises:
        UserError: it is of no known kind, damaged, or lacks a special token.
    """
    # No SentencePiece model begins like that.
    if not content.startswith(b"{"):
        return _read_sentencepiece(content, origin)
    values = _read_json(content, origin)
    if "format" in values:
        return _read_mapped(content, values, origin)
    return _read_hugging_face(content, values, origin)


def save_tokenizers(folder: Path, tokenizers: Sequence[Tokenizer]) -> list[str]:
    """Write the target's tokenizer and, if it has its own, the source's into a folder; their files' names."""
    names = []
    for prefix, tokenizer in zip(("", SOURCE_PREFIX), tokenizers, strict=False):
        names.append(prefix + tokenizer.file_name)
        tokenizer.save(folder / names[-1])
    return names


def mapped_tokenizer(
    segmenter: Literal["sentencepiece", "tokenizers"],
    model: bytes,
    tokens: list[str],
    codes: list[str] | None = None,
    mask_takes_space: bool = True,
    origin: str = "the tokenizer",
) -> Tokenizer:
    """A tokenizer whose pieces have ids of their own; see `MappedFile` for the arguments.

    Raises:
        UserError: the parts do not fit each other.
    """
    file = MappedFile(
        segmenter=segmenter,
        model=base64.b64encode(model),
        tokens=tokens,
        codes=codes or [],
        mask_takes_space=mask_takes_space,
    )
    content = file.model_dump_json(indent=1) + "\n"
    return read_tokenizer(content.encode(), origin)


def _read_json(content: bytes, origin: str) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: not JSON ({error}); copy it again") from None
    return values


def _read_sentencepiece(content: bytes, origin: str) -> Tokenizer:
    segmenter = SentencePieceSegmenter(content, origin)
    processor = segmenter.processor
    ids = {
        "pad": processor.pad_id(),
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
        "unk": processor.unk_id(),
        "mask": segmenter.control_piece(MASK),
    }
    special = {role: token for role, token in ids.items() if token is not None and token >= 0}
    missing = ", ".join(role for role in ids if role not in special)
    if missing:
        raise UserError(
            f"{origin}: the SentencePiece model has no special piece for: {missing}. It needs pad, bos, eos, unk and "
            "the control symbol <mask>: make it with `janus-pt prep train-tokenizer`"
        )
    return Tokenizer(
        content, SENTENCEPIECE, origin, segmenter, Vocabulary(segmenter.pieces, special)
    )


def _read_hugging_face(content: bytes, values: dict[str, Any], origin: str) -> Tokenizer:
    segmenter = HuggingFaceSegmenter(values, origin)
    mask = segmenter.added_tokens.get(MASK, {})
    # By name: what the file says of their ids the library does not believe.
    special = {name for name, token in segmenter.added_tokens.items() if token["special"]}
    codes = frozenset(n for n, piece in enumerate(segmenter.pieces) if piece in special)
    vocabulary = Vocabulary.by_name(segmenter.pieces, codes, mask.get("lstrip", True))
    _check_special(vocabulary, origin)
    return Tokenizer(content, HUGGING_FACE, origin, segmenter, vocabulary)


def _read_mapped(content: bytes, values: dict[str, Any], origin: str) -> Tokenizer:
    try:
        file = MappedFile.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{origin}: {key}: {problem['msg']}; convert it again") from None
    segmenter: Segmenter
    if file.segmenter == "sentencepiece":
        segmenter = SentencePieceSegmenter(file.model, origin)
    else:
        segmenter = HuggingFaceSegmenter(_read_json(file.model, origin), origin)
    ids = {token: number for number, token in enumerate(file.tokens)}
    if not ids.keys() >= set(file.codes):
        raise UserError(f"{origin}: codes: one of them is no token; convert it again")
    codes = frozenset(ids[code] for code in file.codes)
    vocabulary = Vocabulary.by_name(file.tokens, codes, file.mask_takes_space)
    _check_special(vocabulary, origin)
    return Tokenizer(content, MAPPED, origin, segmenter, vocabulary)


def _check_special(vocabulary: Vocabulary, origin: str) -> None:
    """Pad and eos are needed by every model; whether the others are, its config says."""
    for role in ("pad", "eos"):
        if role not in vocabulary.special:
            raise UserError(
                f"{origin}: has no token {SPECIAL_TOKENS[role]}, which every model needs"
            )
