"""Cutting text: long documents into pieces for the workers, pieces into sentences, sentences into token blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from janus_pt.tokenizer import Tokenizer

PIECE_CHARACTERS = 2**18
"""A longer document is cut, at a sentence's end, into pieces no longer than this."""
_SEARCH = 2**14
"""Characters before a piece's greatest length in which a sentence's end is searched."""

_SENTENCE_END = re.compile(
    # Full stop or the like, then closing quotes and brackets, then a word that does not begin in lower case.
    r"""[.!?\u2026](?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)["'\u201d\u2019\u00bb)\]]*(?=\s+[^\sa-z])"""
    # The same in Chinese and Japanese, which put no space behind it.
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\u2019\uff09]*"
    # A blank line ends a sentence; a single line break does unless the next line goes on in lower case.
    r"|\n(?:[ \t]*\n\s*|\s*(?=[^\sa-z]))"
)


def split_sentences(text: str) -> list[str]:
    """Sentences, each with the white space before it; joined they are `text` again, for every text.

    Boundaries are found by punctuation and line breaks, so now and then one is missed or too many.
    """
    sentences = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        # Punctuation belongs to the sentence it ends, a line break to the next one.
        is_line_break = text[match.start()] == "\n"
        end = match.start() if is_line_break else match.end()
        # White space alone is no sentence; it goes to the next one.
        if text[start:end].strip():
            sentences.append(text[start:end])
            start = end
    if start < len(text):
        sentences.append(text[start:])
    return sentences


def cut_pieces(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield `text` in parts of at most `size` characters, cut at a sentence's end, else a space, else anywhere.

    Joined they are `text` again. The cuts depend on the text alone.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        # Only the end of the piece is searched: sentences of the whole document would cost quadratic time.
        window_start = max(start, end - _SEARCH)
        window = text[window_start:end]
        last_sentence = split_sentences(window)[-1]
        cut = len(window) - len(last_sentence)
        if cut == 0:
            # The window is one sentence.
            cut = max(window.rfind(" "), window.rfind("\n"))
        if cut > 0:
            end = window_start + cut
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def pack_blocks(tokenizer: Tokenizer, text: str, max_tokens: int) -> Iterator[list[int]]:
    """Yield the token ids of `text` in blocks of whole sentences, as many as fit in `max_tokens`.

    A sentence that is too long alone is cut between tokens, never inside a character. Where the tokenizer `keeps_text`
    the decoded blocks, in order, are the text; only white space where it is cut is dropped.
    """
    sentences = split_sentences(text.strip())
    # As continuations: a tokenizer puts a space before the first word of a text, and a block has only one first word.
    # The first sentence always begins a block.
    continuations = [[], *tokenizer.encode_continuations(sentences[1:])]
    block: list[int] = []
    for sentence, ids in zip(sentences, continuations, strict=False):
        if block and len(block) + len(ids) <= max_tokens:
            block += ids
            continue
        if block:
            yield block
        # The sentence begins a block, so it is encoded again, as the beginning of a text.
        runs = _cut_tokens(tokenizer, tokenizer.encode(sentence.lstrip()), max_tokens)
        block = runs.pop()
        yield from runs
    if block:
        yield block


def _cut_tokens(tokenizer: Tokenizer, ids: list[int], max_tokens: int) -> list[list[int]]:
    """`ids` in runs of at most `max_tokens`; at least one run, which may be empty."""
    runs = []
    start = 0
    while len(ids) - start > max_tokens:
        end = start + max_tokens
        # A character without a piece is up to four byte tokens; half of it would decode to nothing.
        while tokenizer.continues_character(ids[end]):
            end -= 1
        runs.append(ids[start:end])
        start = end
    runs.append(ids[start:])
    return runs
