"""The work of a worker process: from an item's texts or pairs to token arrays."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from janus_pt.data_prep.blocks import pack_blocks
from janus_pt.data_prep.files import BadLine
from janus_pt.data_prep.inputs import Item, Pair
from janus_pt.packing.example import IntArray
from janus_pt.tokenizer import Tokenizer, read_tokenizer


class Encoded(NamedTuple):
    """An item's samples, packed so that they travel between processes as a few arrays."""

    ids: tuple[IntArray, ...]
    """By field: the token ids of all samples, concatenated."""
    lengths: tuple[IntArray, ...]
    """By field: `[samples]` token counts."""
    bad: list[BadLine]
    """Pairs that were dropped."""
    text_bytes: int
    """UTF-8 bytes of text in the item."""

    def samples(self) -> Iterator[tuple[IntArray, ...]]:
        """Yield each sample's token ids by field."""
        # numpy splits nothing into one empty array, which would be a sample.
        if not len(self.lengths[0]):
            return iter(())
        fields = []
        for ids, lengths in zip(self.ids, self.lengths, strict=True):
            starts = np.cumsum(lengths)[:-1]
            fields.append(np.split(ids, starts))
        return zip(*fields, strict=True)


class Encoder:
    """Turns items into samples of at most `max_tokens` tokens a field; sources may have a tokenizer of their own."""

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int, source_tokenizer: Tokenizer | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.source_tokenizer = source_tokenizer or tokenizer
        self.max_tokens = max_tokens
        # One type for all fields, the smallest that holds every id; the manifest states it.
        largest = max(tokenizer.vocab_size, self.source_tokenizer.vocab_size)
        self.dtype = np.dtype("<u2" if largest <= 2**16 else "<u4")

    def encode(self, item: Item) -> Encoded:
        """Samples of an item: `encode_texts` of its documents, or `encode_pairs` of its pairs."""
        if item.pairs:
            return self.encode_pairs(item.pairs)
        return self.encode_texts(item.texts)

    def encode_texts(self, texts: list[str]) -> Encoded:
        """The blocks of documents, a sample each."""
        blocks: list[list[int]] = []
        for text in texts:
            blocks.extend(pack_blocks(self.tokenizer, text, self.max_tokens))
        return self._pack([blocks], [], texts)

    def blocks(self, text: str) -> Iterator[IntArray]:
        """The blocks of one text, as they are found."""
        for ids in pack_blocks(self.tokenizer, text, self.max_tokens):
            yield np.array(ids, dtype=self.dtype)

    def encode_pairs(self, pairs: list[Pair]) -> Encoded:
        """The pairs without those that have an empty or over-long side."""
        # White space at the ends of a line is no part of the sentence.
        source_ids = self.source_tokenizer.encode_batch([pair.source.strip() for pair in pairs])
        target_ids = self.tokenizer.encode_batch([pair.target.strip() for pair in pairs])
        sources = []
        targets = []
        bad = []
        for pair, source, target in zip(pairs, source_ids, target_ids, strict=True):
            problem = self._problem("source", source) or self._problem("target", target)
            if problem:
                bad.append(BadLine(pair.file, pair.line, problem))
            else:
                sources.append(source)
                targets.append(target)
        texts = [text for pair in pairs for text in (pair.source, pair.target)]
        return self._pack([sources, targets], bad, texts)

    def _problem(self, side: str, ids: list[int]) -> str | None:
        """The reason to drop a pair with this side."""
        if not ids:
            return f"the {side} is empty"
        if len(ids) > self.max_tokens:
            return f"the {side} has {len(ids)} tokens, more than {self.max_tokens}"
        return None

    def _pack(self, fields: list[list[list[int]]], bad: list[BadLine], texts: list[str]) -> Encoded:
        # Two arrays a field: lists of lists are slow to send to another process.
        ids = []
        lengths = []
        for samples in fields:
            ids.append(np.fromiter(chain.from_iterable(samples), dtype=self.dtype))
            lengths.append(np.array([len(sample) for sample in samples], dtype=np.int64))
        text_bytes = sum(len(text.encode()) for text in texts)
        return Encoded(tuple(ids), tuple(lengths), bad, text_bytes)


_encoder: Encoder


def start_worker(tokenizer: bytes, max_tokens: int, source_tokenizer: bytes | None) -> None:
    """Load the tokenizers, given by their files' contents, once for all items of this process."""
    # A global, since the pool passes nothing from a worker's start to its work.
    global _encoder
    of_sources = read_tokenizer(source_tokenizer) if source_tokenizer else None
    _encoder = Encoder(read_tokenizer(tokenizer), max_tokens, of_sources)


def encode_item(item: Item) -> Encoded:
    """`Encoder.encode` with this process's encoder."""
    return _encoder.encode(item)
