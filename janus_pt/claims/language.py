"""A made-up pair of languages, for comparisons without data.

It is learnt in minutes, and has what makes translation hard for a decoder that writes all tokens at
once. Words have one translation each, but a noun comes before its adjective, and the verb at the
end of its clause. Every target is in one of two dialects, by chance, which differ in their article
and in the ending of verbs: of two good translations a model has to choose one and keep to it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

NOUNS, ADJECTIVES, VERBS = 20, 10, 10
MAX_CLAUSES = 2
DIALECTS = (("la", "it"), ("ol", "ek"))
"""Article and ending of verbs."""
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
WORDS_SEED = 0


def made_up_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Sources and targets, one or two clauses each; a pure function of `seed`."""
    # All seeds share the words: only the sentences differ.
    word_rng = np.random.default_rng(WORDS_SEED)
    source_words = _make_words(word_rng, NOUNS + ADJECTIVES + VERBS)
    target_words = _make_words(word_rng, NOUNS + ADJECTIVES + VERBS)
    rng = np.random.default_rng(seed)
    return [_make_pair(rng, source_words, target_words) for _ in range(count)]


def _make_pair(rng: Generator, source_words: list[str], target_words: list[str]) -> tuple[str, str]:
    """One sentence and its translation; a word is its index in both lists."""
    # One dialect for the whole target.
    dialect = DIALECTS[rng.integers(len(DIALECTS))]
    sources = []
    targets = []
    for _ in range(rng.integers(1, MAX_CLAUSES + 1)):
        # Words stand in the lists in this order: nouns, adjectives, verbs.
        subject, object_ = rng.integers(0, NOUNS, 2).tolist()
        subject_adjective, object_adjective = (NOUNS + rng.integers(0, ADJECTIVES, 2)).tolist()
        verb = int(NOUNS + ADJECTIVES + rng.integers(0, VERBS))
        words = (subject, subject_adjective, verb, object_, object_adjective)
        sources.append(_source_clause(*(source_words[word] for word in words)))
        targets.append(_target_clause(dialect, *(target_words[word] for word in words)))
    return " and ".join(sources), " , ".join(targets)


def _source_clause(
    subject: str, subject_adjective: str, verb: str, object_: str, object_adjective: str
) -> str:
    """As in English: adjectives first, the verb in the middle."""
    return f"the {subject_adjective} {subject} {verb} the {object_adjective} {object_}"


def _target_clause(
    dialect: tuple[str, str],
    subject: str,
    subject_adjective: str,
    verb: str,
    object_: str,
    object_adjective: str,
) -> str:
    """Adjectives after their nouns, the verb last; article and ending are the dialect's."""
    article, ending = dialect
    return (
        f"{article} {subject} {subject_adjective} {article} {object_} {object_adjective} "
        f"{verb}{ending}"
    )


def _make_words(rng: Generator, count: int) -> list[str]:
    """Different words of two syllables."""
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    # Every pair of syllables has a number: drawn without repeats, they are different words.
    pairs = rng.permutation(len(syllables) ** 2)[:count]
    words = []
    for pair in pairs:
        first, second = divmod(int(pair), len(syllables))
        words.append(syllables[first] + syllables[second])
    return words
