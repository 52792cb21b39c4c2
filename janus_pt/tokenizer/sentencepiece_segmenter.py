"""SentencePiece models: unigram and BPE.

Models of `janus-pt prep train-tokenizer` leave the text as it is (identity normalisation, byte fallback). The one
exception is U+2581, SentencePiece's own sign for a space: it comes back as a space. Models from elsewhere mostly
normalise: they change characters and lose repeated spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sentencepiece

from janus_pt.tokenizer.segmenter import Segmenter
from janus_pt.utils.errors import UserError

_ANCHOR = "\n"
"""A text that no piece joins with the text behind it."""
SPACE = "\u2581"
"""SentencePiece's sign for a space."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class SentencePieceSegmenter(Segmenter):
    """A SentencePiece model."""

    begins_after_mask = False

    def __init__(self, model: bytes, origin: str) -> None:
        """Take a serialised model; `UserError`, which `origin` begins, if it is none."""
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(model)
            size = self.processor.vocab_size()
            self.pieces: list[str] = self.processor.id_to_piece(list(range(size)))
        # UnicodeDecodeError: of a piece, or of SentencePiece's own message, which quotes the bytes.
        except (RuntimeError, UnicodeDecodeError):
            raise UserError(
                f"{origin}: neither a SentencePiece model nor a tokenizer.json; "
                "`janus-pt prep train-tokenizer` makes one"
            ) from None
        self._known = set(self.pieces)
        self._anchor_length = len(self.processor.encode(_ANCHOR))

    def cut(self, texts: Sequence[str], continues: bool = False) -> list[list[int]]:
        return self._cut(texts, continues, int)

    def cut_to_strings(self, texts: Sequence[str], continues: bool = False) -> list[list[str]]:
        return self._cut(texts, continues, str)

    def _cut(self, texts: Sequence[str], continues: bool, kind: type) -> list[list[Any]]:
        if not continues:
            # One by one: for a list SentencePiece starts a thread anew at every call, even where one is asked for.
            return [self.processor.encode(text, out_type=kind) for text in texts]
        # SentencePiece has no switch for it, so each text is cut behind a line break, which never
        # joins a piece, and the break's pieces are dropped. A model that strips white space has
        # none of them, and puts a space before the text.
        anchored = self._cut([_ANCHOR + text for text in texts], False, kind)
        return [pieces[self._anchor_length :] for pieces in anchored]

    def join(self, pieces: Sequence[str]) -> str:
        text = str(self.processor.decode_pieces(list(pieces)))
        # Pieces of another model, as the source's in Marian's shared vocabulary, come as they are.
        text = text.replace(SPACE, " ")
        is_other = bool(pieces) and pieces[0] not in self._known
        return text.removeprefix(" ") if is_other else text

    def readable(self, piece: str) -> str:
        return piece

    def first_byte(self, piece: str) -> int | None:
        # Pieces of one byte are written <0x80>.
        match = _BYTE_PIECE.fullmatch(piece)
        return int(match[1], 16) if match else None

    def control_piece(self, piece: str) -> int | None:
        """Number of a control symbol, which no text gives; None if the model has none of this name."""
        number = self.processor.piece_to_id(piece)
        # SentencePiece gives the number of unk for a piece it does not have.
        exists = self.pieces[number] == piece
        return number if exists and self.processor.is_control(number) else None
