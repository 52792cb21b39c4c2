"""Text to token ids and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

from janus_pt.tokenizer.segmenter import CONTINUATION_BYTES, Segmenter
from janus_pt.tokenizer.vocabulary import MASK, Vocabulary
from janus_pt.utils.errors import UserError

_PROBE = "two  spaces\tand\n \ufb01, e\u0301, \u65e5, \U0001f600 "
"""Every normalisation in use changes something in it."""


class Tokenizer:
    """Text to token ids and back. No special id is added or expected: see `bos_token_id` and its siblings.

    Text that spells a special token (`<mask>`, `</s>`) is encoded as the characters it is. The one exception is
    Marian's language to translate to, `>>fra<<`, at the beginning of a text, if the vocabulary has such tokens.

    Attributes:
        content: the file, byte for byte.
        file_name: the file's name in the folders that we write, which says its kind.
        origin: where it is from, for messages.
        segmenter: what cuts and joins.
        vocabulary: which id a piece has.
        pad_token_id: None, as its siblings, where the vocabulary has no such token.
        special_ids: ids of pad, bos, eos, unk, mask, and of tokens such as languages.
    """

    def __init__(
        self,
        content: bytes,
        file_name: str,
        origin: str,
        segmenter: Segmenter,
        vocabulary: Vocabulary,
    ) -> None:
        self.content = content
        self.file_name = file_name
        self.origin = origin
        self.segmenter = segmenter
        self.vocabulary = vocabulary
        special = vocabulary.special
        self.pad_token_id = special.get("pad")
        self.bos_token_id = special.get("bos")
        self.eos_token_id = special.get("eos")
        self.unk_token_id = special.get("unk")
        self.mask_token_id = special.get("mask")
        self.special_ids = vocabulary.codes | set(special.values())
        self._directions = vocabulary.directions
        # Most tokenizers have no vocabulary beside the segmenter's.
        self._ids = None if vocabulary.tokens == segmenter.pieces else self._ids_by_piece()

    def _ids_by_piece(self) -> dict[str, int]:
        """Ids of the tokens that texts have. Unknown characters may spell a special one."""
        if self.unk_token_id is None:
            raise UserError(f"{self.origin}: has no token <unk>")
        tokens = enumerate(self.vocabulary.tokens)
        return {token: number for number, token in tokens if number not in self.special_ids}

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included; every id is below it."""
        return len(self.vocabulary.tokens)

    @property
    def model_ids(self) -> dict[str, int]:
        """The special ids of `ModelConfig` by key: where there is no such token, pad stands in for bos (as in Marian's
        models), and unk for mask (as in the authors')."""
        # Every tokenizer has pad and eos, see `files.py`.
        pad, eos = cast(int, self.pad_token_id), cast(int, self.eos_token_id)
        unk = pad if self.unk_token_id is None else self.unk_token_id
        return {
            "pad_token_id": pad,
            "bos_token_id": pad if self.bos_token_id is None else self.bos_token_id,
            "eos_token_id": eos,
            "unk_token_id": unk,
            "mask_token_id": unk if self.mask_token_id is None else self.mask_token_id,
        }

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def keeps_text(self) -> bool:
        """Whether `decode(encode(text)) == text`: tried with a text that normalisation would change."""
        return self.decode(self.encode(_PROBE)) == _PROBE

    def save(self, path: str | Path) -> None:
        """Write the file, byte for byte as it was read."""
        Path(path).write_bytes(self.content)

    def shares_ids(self, other: Tokenizer) -> bool:
        """Whether every id is the same token in both; they may cut a text differently."""
        return self.vocabulary.tokens == other.vocabulary.tokens

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without bos and eos."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on one thread."""
        if not self._directions:
            return self._encode(texts)
        split = [_split_direction(text) for text in texts]
        encoded = self._encode([text for _, text in split])
        # As MarianTokenizer has it: an unknown direction is an unknown token.
        unk = cast(int, self.unk_token_id)
        return [
            [self._directions.get(direction, unk), *ids] if direction else ids
            for (direction, _), ids in zip(split, encoded, strict=True)
        ]

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that continue a line: no space is put before the first word.

        With this `decode(encode(a) + encode_continuations([b])[0]) == a + b`, where the tokenizer `keeps_text`.
        One that strips white space (Marian's, mBART's) puts a space between them all the same.
        """
        return self._encode(texts, continues=True)

    def encode_masked(self, text: str) -> list[int]:
        """Token ids of a text in which `<mask>` is the mask token, as BART reads it.

        Raises:
            UserError: the vocabulary has no mask.
        """
        *masked, last = text.split(MASK)
        if not masked:
            return self.encode(text)
        if self.mask_token_id is None:
            raise UserError(f"{self.origin}: has no token {MASK}, which the text asks for")
        if self.vocabulary.mask_takes_space:
            masked = [part.rstrip() for part in masked]
        continues = not self.segmenter.begins_after_mask
        ids = self.encode(masked[0])
        for part in self._encode([*masked[1:], last], continues):
            ids += [self.mask_token_id, *part]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids (any integers, numpy's as well), without special ids. `IndexError` for an unknown id."""
        tokens = [int(token) for token in ids]
        return self.segmenter.join([self._token(t) for t in tokens if t not in self.special_ids])

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, such as a language's; None if it has none."""
        tokens = self.vocabulary.tokens
        return tokens.index(token) if token in tokens else None

    def piece(self, token: int) -> str:
        """The token for people to read, a space as U+2581. `IndexError` for an unknown id."""
        return self.segmenter.readable(self._token(token))

    def continues_character(self, token: int) -> bool:
        """Whether `token` begins in the middle of a UTF-8 character, before which text must not be cut."""
        return self.segmenter.first_byte(self._token(token)) in CONTINUATION_BYTES

    def _token(self, token: int) -> str:
        # Python would count from the end.
        if token < 0:
            raise IndexError(token)
        return self.vocabulary.tokens[token]

    def _encode(self, texts: Sequence[str], continues: bool = False) -> list[list[int]]:
        if self._ids is None:
            return self.segmenter.cut(texts, continues)
        ids, unk = self._ids, cast(int, self.unk_token_id)
        pieces = self.segmenter.cut_to_strings(texts, continues)
        return [[ids.get(piece, unk) for piece in of_text] for of_text in pieces]


def _split_direction(text: str) -> tuple[str, str]:
    """Marian's `>>fra<<` at the beginning of a text, or nothing; and the rest."""
    end = text.find("<<")
    if not text.startswith(">>") or end < 0:
        return "", text
    return text[: end + 2], text[end + 2 :]
