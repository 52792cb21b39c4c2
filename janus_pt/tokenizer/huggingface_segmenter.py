"""Files of the library `tokenizers` (tokenizer.json): byte-level BPE, as BART's, and unigram models."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import tokenizers

from janus_pt.tokenizer.segmenter import Segmenter
from janus_pt.utils.errors import UserError

# The library starts threads for a batch, and warns at each fork after that. Callers are processes
# already, one for each core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

KINDS = ("BPE", "Unigram")


class HuggingFaceSegmenter(Segmenter):
    """A tokenizer of the library `tokenizers`.

    Attributes:
        added_tokens: the file's entries for tokens beside the model's, by their text.
    """

    begins_after_mask = True

    def __init__(self, content: dict[str, Any], origin: str) -> None:
        """Take the content of a tokenizer.json; `UserError`, which `origin` begins, if it is unfit."""
        try:
            self._tokenizer = _build(content)
            continuing = _without_first_space(content)
            self._continuing = self._tokenizer if continuing == content else _build(continuing)
            self.pieces = _pieces(content, self._tokenizer)
            self.added_tokens = {token["content"]: token for token in content["added_tokens"]}
        except BaseException as error:
            # The library raises plain `Exception`s, and PanicException, which is none, where it
            # takes something for granted. The others are ours, of a file with other keys.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = str(error).partition("\n")[0]
            raise UserError(f"{origin}: no tokenizer.json that can be used: {reason}") from None
        self._is_byte_level = "ByteLevel" in json.dumps(content.get("decoder"))

    def cut(self, texts: Sequence[str], continues: bool = False) -> list[list[int]]:
        tokenizer = self._continuing if continues else self._tokenizer
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def cut_to_strings(self, texts: Sequence[str], continues: bool = False) -> list[list[str]]:
        # By number, as the fast way gives no strings.
        return [[self.pieces[n] for n in numbers] for numbers in self.cut(texts, continues)]

    def join(self, pieces: Sequence[str]) -> str:
        decoder = self._tokenizer.decoder
        return decoder.decode(list(pieces)) if decoder else " ".join(pieces)

    def readable(self, piece: str) -> str:
        """The piece as text, its spaces as U+2581; parts of a character as <0xNN>."""
        if not self._is_byte_level or not set(piece) <= BYTES.keys():
            return piece
        content = bytes(BYTES[character] for character in piece)
        try:
            return content.decode().replace(" ", "\u2581")
        # A part of a character.
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in content)

    def first_byte(self, piece: str) -> int | None:
        return BYTES.get(piece[:1]) if self._is_byte_level else None


def _build(content: dict[str, Any]) -> tokenizers.Tokenizer:
    """The library's object, in which no text gives a special token."""
    _check_model(content.get("model"))
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    if content["model"].get("type") == "Unigram":
        hidden = _hide_special_tokens(content)
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(hidden))
    # The file keeps what its last user had set.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Else text that spells one of the added tokens that are special is that token.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_model(model: Any) -> None:
    """Refuse, by their names, settings under which the library fails or chooses at random."""
    if not isinstance(model, dict):
        raise ValueError('it has no "model"')
    # The oldest files do not say it, and are BPE.
    kind = model.get("type", "BPE")
    if kind not in KINDS:
        raise ValueError(f"its model is {kind}, not one of: {', '.join(KINDS)}")
    # With this and other merges than it expects, version 0.23 ends the process.
    if model.get("continuing_subword_prefix"):
        raise ValueError("model.continuing_subword_prefix is not supported")
    if model.get("dropout"):
        raise ValueError("model.dropout is for training, and makes ids random; set it to null")
    # Else the first unknown character of some text is an error.
    if kind == "Unigram" and model.get("unk_id") is None:
        raise ValueError("model.unk_id is missing")


def _special_names(content: dict[str, Any]) -> set[str]:
    return {token["content"] for token in content["added_tokens"] if token["special"]}


def _hide_special_tokens(content: dict[str, Any]) -> dict[str, Any]:
    """The content with other names for special tokens, which a unigram model would match in text."""
    names = _special_names(content)
    model = content["model"]
    vocab = [[_hidden(piece, names), score] for piece, score in model["vocab"]]
    added = [
        {**token, "content": _hidden(token["content"], names)} for token in content["added_tokens"]
    ]
    return {**content, "model": {**model, "vocab": vocab}, "added_tokens": added}


def _hidden(piece: str, names: set[str]) -> str:
    # No text has a space by the time that it is cut: Metaspace has replaced them all.
    return piece + " " if piece in names else piece


def _without_first_space(content: dict[str, Any]) -> dict[str, Any]:
    """The content without the space before the first word, where the file asks for one."""
    settings = content.get("pre_tokenizer") or {}
    changes: dict[str, dict[str, Any]] = {
        "ByteLevel": {"add_prefix_space": False},
        "Metaspace": {"prepend_scheme": "never"},
    }
    change = changes.get(settings.get("type", ""), {})
    return {**content, "pre_tokenizer": {**settings, **change} or None}


def _pieces(content: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> list[str]:
    """The pieces by number, as the file writes them."""
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    shown = {name + " ": name for name in _special_names(content)}
    by_number = {number: shown.get(piece, piece) for piece, number in numbers.items()}
    missing = next((n for n in range(len(numbers)) if n not in by_number), None)
    if missing is not None:
        raise ValueError(f"no token has the id {missing}")
    return [by_number[number] for number in range(len(numbers))]


def _bytes_by_character() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for 256 and on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return table


BYTES = _bytes_by_character()
"""The byte that each character of a byte-level piece stands for."""
