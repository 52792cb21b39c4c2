"""Words and sentences for datatrove's filters, by Unicode's classes of characters alone."""

from __future__ import annotations

import regex
from datatrove.utils.word_tokenizers import WordTokenizer

from janus_pt.data_prep.blocks import split_sentences

_WORD = regex.compile(
    # Scripts without spaces: a character is a word.
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
    # Letters, digits and marks, with an apostrophe or hyphen inside.
    r"|[\p{L}\p{N}\p{M}_]+(?:['\u2019-][\p{L}\p{N}\p{M}_]+)*"
    # Any other mark by itself.
    r"|[^\s\p{L}\p{N}]"
)


class UnicodeWords(WordTokenizer):
    """Needs no model and no package for any language, and takes a fraction of spaCy's time.

    datatrove's own tokenizers, one or more packages a language, are what its thresholds were found with. Words differ
    in clitics ("don't" is one word here) and agree otherwise.
    """

    def word_tokenize(self, text: str) -> list[str]:
        """The words and marks of a text."""
        return list(_WORD.findall(text))

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences of a text, without white space around them."""
        return [sentence.strip() for sentence in split_sentences(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(begin, end) of each sentence; together they are the text."""
        spans = []
        start = 0
        for sentence in split_sentences(text):
            spans.append((start, start + len(sentence)))
            start += len(sentence)
        return spans

    # datatrove caches the words of the last texts by (text, tokenizer): filters share them if theirs are equal.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeWords)

    def __hash__(self) -> int:
        return hash(UnicodeWords)
