"""SentencePiece tokenizer with the five special pieces every part of the project relies on.

Models made by `janus-pt prep train-tokenizer` leave the text as it is (identity normalisation, byte fallback), so
`decode(encode(text)) == text` for every string, repeated spaces and line breaks included. The one exception is
U+2581, SentencePiece's own sign for a space: it comes back as a space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from janus_pt.utils.errors import UserError

MASK_PIECE = "<mask>"
MAX_MODEL_BYTES = 64 * 2**20
"""A larger file is refused before it is read; the largest multilingual models in use are about 5 MB."""
_ANCHOR = "\n"
"""A text that no piece joins with the text behind it."""


class Tokenizer:
    """Text to token ids and back. No special id is added or expected: see `bos_token_id` and its siblings.

    Special pieces are control symbols: text that spells `<mask>` or `</s>` is encoded as the characters it is.
    """

    def __init__(self, model: bytes, origin: str = "the tokenizer model") -> None:
        """Take a serialised SentencePiece model.

        Args:
            origin: names the model in the message of the `UserError` that is raised if it is unfit.
        """
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        # UnicodeDecodeError comes from SentencePiece's own error message, which quotes the bytes.
        except (RuntimeError, UnicodeDecodeError):
            raise UserError(
                f"{origin}: no SentencePiece model; make one with janus-pt prep train-tokenizer"
            ) from None
        self.pad_token_id: int = self._processor.pad_id()
        self.bos_token_id: int = self._processor.bos_id()
        self.eos_token_id: int = self._processor.eos_id()
        self.unk_token_id: int = self._processor.unk_id()
        self.mask_token_id: int = self._control_id(MASK_PIECE)
        self._special = self._checked_specials(origin)
        self._anchor: list[int] = self._processor.encode(_ANCHOR)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a model file. `UserError` if it is missing, too large, not a model, or lacks a special piece."""
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"{path}: no such tokenizer file (make one with janus-pt prep train-tokenizer)"
            )
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise UserError(
                f"{path}: {size:,} bytes is no tokenizer model, the limit is {MAX_MODEL_BYTES:,}"
            )
        return cls(path.read_bytes(), str(path))

    def save(self, path: str | Path) -> None:
        """Write the model file, byte for byte as it was read."""
        Path(path).write_bytes(self.model)

    @property
    def vocab_size(self) -> int:
        """Number of pieces, special ones included; every id is below it."""
        return int(self._processor.vocab_size())

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the model file."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of pad, bos, eos, unk and mask."""
        return self._special

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without bos and eos."""
        return list(self._processor.encode(text))

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, on `num_threads` threads."""
        return list(self._processor.encode(list(texts), num_threads=num_threads))

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that continue a line: no space is put before the first word.

        With this `decode(encode(a) + encode_continuations([b])[0]) == a + b`. SentencePiece has no switch for it, so
        each text is encoded behind a line break, which never joins a piece, and the break's ids are dropped.
        """
        anchored = [_ANCHOR + text for text in texts]
        # One thread: callers are processes already, one for each core.
        encoded = self._processor.encode(anchored, num_threads=1)
        skip = len(self._anchor)
        return [ids[skip:] for ids in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids (any integers, numpy's as well), without special ids. `IndexError` for an unknown id."""
        # SentencePiece takes Python's integers only.
        tokens = [int(token) for token in ids]
        return str(self._processor.decode([t for t in tokens if t not in self._special]))

    def piece(self, token: int) -> str:
        """The piece as SentencePiece writes it, a space as U+2581."""
        return str(self._processor.id_to_piece(token))

    def continues_character(self, token: int) -> bool:
        """Whether `token` is a byte in the middle of a UTF-8 character, before which text must not be cut."""
        if not self._processor.is_byte(token):
            return False
        # Byte pieces are written <0x80>; UTF-8 continues a character with the bytes 80 to BF.
        byte = int(self._processor.id_to_piece(token)[1:-1], 16)
        return 0x80 <= byte < 0xC0

    def _control_id(self, piece: str) -> int:
        """The id of a control symbol; -1 if the model has none of this name."""
        token = int(self._processor.piece_to_id(piece))
        # SentencePiece gives the id of unk for a piece it does not have.
        exists = self._processor.id_to_piece(token) == piece
        if exists and self._processor.is_control(token):
            return token
        return -1

    def _checked_specials(self, origin: str) -> frozenset[int]:
        """The five special ids. `UserError` names those that are missing."""
        ids = {
            "pad": self.pad_token_id,
            "bos": self.bos_token_id,
            "eos": self.eos_token_id,
            "unk": self.unk_token_id,
            "mask": self.mask_token_id,
        }
        missing = ", ".join(name for name, token in ids.items() if token < 0)
        if missing:
            raise UserError(
                f"{origin}: the SentencePiece model has no special piece for: {missing}. "
                "It needs pad, bos, eos, unk and the control symbol <mask>: make it with janus-pt prep train-tokenizer"
            )
        return frozenset(ids.values())
