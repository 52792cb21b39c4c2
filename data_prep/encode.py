"""What a worker process does: an item's texts or pairs to token arrays."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from data_prep.blocks import pack_blocks
from data_prep.files import BadLine
from data_prep.inputs import Item, Pair
from janus_pt.tokenizer import Tokenizer

Tokens = np.ndarray[Any, np.dtype[Any]]


class Encoded(NamedTuple):
    """An item's samples, packed so that they travel between processes as a few arrays."""

    ids: tuple[Tokens, ...]
    """By field: the token ids of all samples one after another."""
    lengths: tuple[Tokens, ...]
    """By field: `[samples]` token counts."""
    bad: list[BadLine]
    """Pairs left out."""
    text_bytes: int
    """UTF-8 bytes of text in the item."""

    def samples(self) -> Iterator[tuple[Tokens, ...]]:
        """Yield each sample's token ids by field."""
        fields = [
            np.split(ids, np.cumsum(lengths)[:-1])
            for ids, lengths in zip(self.ids, self.lengths, strict=True)
        ]
        return zip(*fields, strict=True) if len(self.lengths[0]) else iter(())


class Encoder:
    """Turns items into samples of at most `max_tokens` tokens a field; sources may have a tokenizer of their own."""

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int, source_tokenizer: Tokenizer | None = None
    ) -> None:
        self.tokenizer, self.source_tokenizer = tokenizer, source_tokenizer or tokenizer
        self.max_tokens = max_tokens
        largest = max(tokenizer.vocab_size, self.source_tokenizer.vocab_size)
        self.dtype = np.dtype("<u2" if largest <= 2**16 else "<u4")

    def encode(self, item: Item) -> Encoded:
        """Blocks of the item's documents, or its pairs of lines less the empty and over-long ones."""
        return self._encode_pairs(item.pairs) if item.pairs else self._encode_texts(item.texts)

    def _encode_texts(self, texts: list[str]) -> Encoded:
        blocks = [
            block for text in texts for block in pack_blocks(self.tokenizer, text, self.max_tokens)
        ]
        return self._packed([blocks], [], texts)

    def _encode_pairs(self, pairs: list[Pair]) -> Encoded:
        sources = self.source_tokenizer.encode_batch([pair.source.strip() for pair in pairs])
        targets = self.tokenizer.encode_batch([pair.target.strip() for pair in pairs])
        kept, bad = [], []
        for pair, source, target in zip(pairs, sources, targets, strict=True):
            reason = self._unfit("source", source) or self._unfit("target", target)
            if reason:
                bad.append(BadLine(pair.file, pair.line, reason))
            else:
                kept.append((source, target))
        texts = [text for pair in pairs for text in (pair.source, pair.target)]
        return self._packed([[pair[0] for pair in kept], [pair[1] for pair in kept]], bad, texts)

    def _unfit(self, name: str, ids: list[int]) -> str:
        if not ids:
            return f"the {name} is empty"
        return (
            f"the {name} has {len(ids)} tokens, more than {self.max_tokens}"
            if len(ids) > self.max_tokens
            else ""
        )

    def _packed(
        self, fields: list[list[list[int]]], bad: list[BadLine], texts: list[str]
    ) -> Encoded:
        ids = tuple(np.fromiter(chain.from_iterable(field), dtype=self.dtype) for field in fields)
        lengths = tuple(
            np.array([len(sample) for sample in field], dtype=np.int64) for field in fields
        )
        return Encoded(ids, lengths, bad, sum(len(text.encode()) for text in texts))


_encoder: Encoder


def start_worker(model: bytes, max_tokens: int, source_model: bytes | None) -> None:
    """Load the tokenizers once for all items of this process."""
    global _encoder
    _encoder = Encoder(
        Tokenizer(model), max_tokens, Tokenizer(source_model) if source_model else None
    )


def encode_item(item: Item) -> Encoded:
    """`Encoder.encode` with this process's encoder."""
    return _encoder.encode(item)
