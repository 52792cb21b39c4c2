"""What a library does for a tokenizer: it cuts texts into pieces, and joins pieces to texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

CONTINUATION_BYTES = range(0x80, 0xC0)
"""UTF-8 continues a character with these."""


class Segmenter(ABC):
    """Cuts text into pieces, which are numbered from 0.

    Text that spells a special token (`<mask>`, `</s>`) is cut like any other text.

    Attributes:
        pieces: by number, as the library writes them.
        begins_after_mask: whether the library takes text behind a special token for the beginning
            of a text, and not for its continuation.
    """

    pieces: list[str]
    begins_after_mask: bool

    @abstractmethod
    def cut(self, texts: Sequence[str], continues: bool = False) -> list[list[int]]:
        """Numbers of the pieces of each text.

        On one thread: callers are processes already, one for each core.

        Args:
            continues: they continue a line: no space is put before the first word.
        """

    @abstractmethod
    def cut_to_strings(self, texts: Sequence[str], continues: bool = False) -> list[list[str]]:
        """`cut`, with the pieces themselves; unknown characters may come as they are."""

    @abstractmethod
    def join(self, pieces: Sequence[str]) -> str:
        """The text of pieces; any strings will do, also such that are not among `pieces`."""

    @abstractmethod
    def readable(self, piece: str) -> str:
        """The piece for people to read, a space as U+2581."""

    @abstractmethod
    def first_byte(self, piece: str) -> int | None:
        """The first byte of a piece that is made of bytes; None for pieces of whole characters."""
