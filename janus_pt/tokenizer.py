"""SentencePiece tokenizer with the five special pieces every part of the project relies on.

Models made by `data_prep/train_tokenizer.py` leave the text as it is (identity normalisation, byte fallback), so
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


class Tokenizer:
    """Text to token ids and back. No special id is added or expected: see `bos_token_id` and its siblings.

    Special pieces are control symbols: text that spells `<mask>` or `</s>` is encoded as the characters it is.
    """

    def __init__(self, model: bytes, origin: str = "the tokenizer model") -> None:
        """Take a serialised SentencePiece model; `origin` names it in the `UserError` raised if it is unfit."""
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, UnicodeDecodeError):  # the latter from its own error message
            raise UserError(
                f"{origin}: no SentencePiece model; make one with data_prep/train_tokenizer.py"
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
                f"{path}: no such tokenizer file (make one with data_prep/train_tokenizer.py)"
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
        skip = len(self._anchor)
        return [
            ids[skip:]
            for ids in self._processor.encode([_ANCHOR + text for text in texts], num_threads=1)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids (any integers, numpy's too); special ids are left out. `IndexError` for an unknown id."""
        return str(self._processor.decode([int(i) for i in ids if int(i) not in self._special]))

    def piece(self, token: int) -> str:
        """The piece as SentencePiece writes it, a space as U+2581."""
        return str(self._processor.id_to_piece(token))

    def continues_character(self, token: int) -> bool:
        """Whether `token` is a byte in the middle of a UTF-8 character, before which text must not be cut."""
        if not self._processor.is_byte(token):
            return False
        return 0x80 <= int(self._processor.id_to_piece(token)[1:-1], 16) < 0xC0

    def _control_id(self, piece: str) -> int:
        token = int(self._processor.piece_to_id(piece))
        found = self._processor.id_to_piece(token) == piece and self._processor.is_control(token)
        return token if found else -1

    def _checked_specials(self, origin: str) -> frozenset[int]:
        ids = {
            name: getattr(self, f"{name}_token_id") for name in ("pad", "bos", "eos", "unk", "mask")
        }
        missing = ", ".join(name for name, token in ids.items() if token < 0)
        if missing:
            raise UserError(
                f"{origin}: the SentencePiece model has no special piece for: {missing}. "
                "It needs pad, bos, eos, unk and the control symbol <mask>: make it with data_prep/train_tokenizer.py"
            )
        return frozenset(ids.values())
