"""Cutting text: long documents into pieces for the workers, pieces into sentences, sentences into token blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from janus_pt.tokenizer import Tokenizer

PIECE_CHARACTERS = 2**18
"""A longer document is cut, at a sentence's end, into pieces no longer than this."""
_SEARCH = 2**14
"""How far back from a piece's greatest length its sentence end is looked for."""

_SENTENCE_END = re.compile(
    # Full stop or the like, then closing quotes and brackets, then a word that does not begin in lower case.
    r"""[.!?\u2026](?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)["'\u201d\u2019\u00bb)\]]*(?=\s+[^\sa-z])"""
    # The same in Chinese and Japanese, which put no space behind it.
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\u2019\uff09]*"
    # A blank line ends a sentence; a single line break does unless the next line goes on in lower case.
    r"|\n(?:[ \t]*\n\s*|\s*(?=[^\sa-z]))"
)


def split_sentences(text: str) -> list[str]:
    """Sentences with the white space before them; joined they are `text` again, whatever it is.

    Boundaries are found by punctuation and line breaks, so now and then one is missed or too many.
    """
    sentences = []
    last = 0
    for match in _SENTENCE_END.finditer(text):
        cut = match.start() if text[match.start()] == "\n" else match.end()
        if text[last:cut].strip():
            sentences.append(text[last:cut])
            last = cut
    if last < len(text):
        sentences.append(text[last:])
    return sentences


def cut_pieces(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield `text` in parts of at most `size` characters, cut at a sentence's end, else a space, else anywhere.

    Joined they are `text` again. The cuts depend on the text alone.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        window_start = max(start, end - _SEARCH)
        window = text[window_start:end]
        cut = len(window) - len(split_sentences(window)[-1])
        if cut == 0:
            cut = max(window.rfind(" "), window.rfind("\n"))
        end = window_start + cut if cut > 0 else end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def pack_blocks(tokenizer: Tokenizer, text: str, max_tokens: int) -> Iterator[list[int]]:
    """Yield the token ids of `text` in blocks of whole sentences, as many as fit in `max_tokens`.

    A sentence that is too long alone is cut between tokens, never inside a character. The decoded blocks, in order,
    are the text; only white space where it is cut is dropped.
    """
    sentences = split_sentences(text.strip())
    block: list[int] = []
    for sentence, ids in zip(sentences, tokenizer.encode_continuations(sentences), strict=True):
        if block and len(block) + len(ids) <= max_tokens:
            block += ids
            continue
        if block:
            yield block
        *whole, block = _cut_tokens(tokenizer, tokenizer.encode(sentence.lstrip()), max_tokens)
        yield from whole
    if block:
        yield block


def _cut_tokens(tokenizer: Tokenizer, ids: list[int], max_tokens: int) -> list[list[int]]:
    """`ids` in runs of at most `max_tokens`; at least one run, which may be empty."""
    runs = []
    start = 0
    while len(ids) - start > max_tokens:
        end = start + max_tokens
        while tokenizer.continues_character(ids[end]):
            end -= 1
        runs.append(ids[start:end])
        start = end
    return [*runs, ids[start:]]
