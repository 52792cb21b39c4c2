"""Filters of sentence pairs, as OpusFilter has them, each a function of the two sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import regex
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from janus_pt.data_prep.pipeline.language import matches
from janus_pt.data_prep.pipeline.schema import LanguageConfig, PairFilters
from janus_pt.data_prep.pipeline.words import UnicodeWords

SHORT_SIDE = 20
"""Characters of a side below which the ratio of lengths says nothing."""
SCRIPT_SHARE = 0.5

Rule = Callable[[Document], str | None]
"""The reason to remove a pair, or None."""

_WORDS = UnicodeWords()
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,\u00a0\u202f'\u2019 ]\p{Nd}{3}\b|[.,:]\p{Nd}+)*")
_LETTER = regex.compile(r"\p{L}")
_QUESTION = "?\uff1f\u061f\u037e;"
_EXCLAMATION = "!\uff01"
_CLOSING = "\"'\u201d\u2019\u00bb\u203a\u201c\u2018)]\u300d\u300f\u300b \u00a0"


class PairFilter(BaseFilter):
    """Removes pairs for which a rule has a reason."""

    def __init__(self, name: str, rule: Rule, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.name = name
        self.rule = rule

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Keep the pair, or the rule's reason."""
        reason = self.rule(doc)
        return True if reason is None else (False, reason)


def pair_rules(config: PairFilters) -> Iterator[tuple[str, Rule]]:
    """Yield (name, rule) for each filter that the configuration names, the cheap ones first."""
    yield "empty", _empty
    if config.min_score is not None:
        yield "min_score", partial(_score, config.min_score)
    if config.max_words is not None:
        yield "max_words", partial(_long, config.max_words)
    if config.max_length_ratio is not None:
        yield "max_length_ratio", partial(_ratio, config.max_length_ratio)
    if config.max_overlap is not None:
        yield "max_overlap", partial(_copy, config.max_overlap)
    for side in ("source", "target"):
        if script := getattr(config, f"{side}_script"):
            yield f"{side}_script", partial(_script, side, script)
    if config.numbers:
        yield "numbers", _numbers
    if config.punctuation:
        yield "punctuation", _punctuation
    for side in ("source", "target"):
        if language := getattr(config, f"{side}_language"):
            yield f"{side}_language", partial(_language, side, language)


def side_text(doc: Document, side: str) -> str:
    """The text of `source` or `target`."""
    text: str = doc.text if side == "source" else doc.metadata["target"]
    return text


def _empty(doc: Document) -> str | None:
    return None if doc.metadata["target"].strip() else "the target is empty"


def _score(least: float, doc: Document) -> str | None:
    score = doc.metadata.get("score")
    if score is None:
        return "no score"
    return None if score >= least else "below the least score"


def _long(most: int, doc: Document) -> str | None:
    for side in ("source", "target"):
        if len(_WORDS.word_tokenize(side_text(doc, side))) > most:
            return f"long {side}"
    return None


def _ratio(most: float, doc: Document) -> str | None:
    short, long = sorted((len(doc.text.strip()), len(doc.metadata["target"].strip())))
    if long < SHORT_SIDE or long <= most * short:
        return None
    return "lengths differ"


def _copy(most: float, doc: Document) -> str | None:
    """Share of the target's words that stand in the source; marks and numbers are the same in most languages."""
    source = {word for word in _words(doc.text)}
    target = _words(doc.metadata["target"])
    if not target:
        return None
    share = sum(word in source for word in target) / len(target)
    # A limit of 1 removes nothing but copies.
    return "copied" if share > most or share == 1.0 else None


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORDS.word_tokenize(text) if word[0].isalpha()]


def _script(side: str, script: str, doc: Document) -> str | None:
    text = side_text(doc, side)
    letters = len(_LETTER.findall(text))
    of_script = len(regex.findall(rf"\p{{{script}}}", text))
    return None if of_script >= SCRIPT_SHARE * letters else f"not {script}"


def _numbers(doc: Document) -> str | None:
    return None if numbers(doc.text) == numbers(doc.metadata["target"]) else "numbers differ"


def numbers(text: str) -> list[str]:
    """The digits of each number of two or more, sorted: separators of thousands and decimals differ by language."""
    found = ("".join(filter(str.isdigit, number)) for number in _NUMBER.findall(text))
    # One digit is often written as a word on the other side.
    return sorted(digits for digits in found if len(digits) > 1)


def _punctuation(doc: Document) -> str | None:
    kinds = {_last_mark(doc.text), _last_mark(doc.metadata["target"])}
    return None if len(kinds) == 1 else "last marks differ"


def _last_mark(text: str) -> str:
    last = text.rstrip(_CLOSING)[-1:]
    if last and last in _QUESTION:
        return "question"
    return "exclamation" if last and last in _EXCLAMATION else "other"


def _language(side: str, config: LanguageConfig, doc: Document) -> str | None:
    return None if matches(side_text(doc, side), config) else f"other {side} language"
