"""A made-up pair of languages, for comparisons without data: learnt in minutes, and with what makes translation hard
for a decoder that writes all tokens at once.

Words have one translation each, but a noun comes before its adjective, and the verb at the end of its clause. Every
target is in one of two dialects, by chance, which differ in their article and in the ending of verbs: of two good
translations a model has to choose one and stay with it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

NOUNS, ADJECTIVES, VERBS = 20, 10, 10
MAX_CLAUSES = 2
DIALECTS = (("la", "it"), ("ol", "ek"))
"""Article and ending of verbs."""
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def made_up_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Sources and targets, one or two clauses each; a pure function of `seed`."""
    words = np.random.default_rng(0)
    source, target = (
        _words(words, NOUNS + ADJECTIVES + VERBS),
        _words(words, NOUNS + ADJECTIVES + VERBS),
    )
    rng = np.random.default_rng(seed)
    return [_pair(rng, source, target) for _ in range(count)]


def _pair(rng: Generator, source: list[str], target: list[str]) -> tuple[str, str]:
    article, ending = DIALECTS[rng.integers(len(DIALECTS))]
    clauses = []
    for _ in range(rng.integers(1, MAX_CLAUSES + 1)):
        who, whom = (int(noun) for noun in rng.integers(0, NOUNS, 2))
        how, what = (int(word) for word in NOUNS + rng.integers(0, ADJECTIVES, 2))
        does = int(NOUNS + ADJECTIVES + rng.integers(0, VERBS))
        clauses.append(
            (
                f"the {source[how]} {source[who]} {source[does]} the {source[what]} {source[whom]}",
                f"{article} {target[who]} {target[how]} {article} {target[whom]} {target[what]} {target[does]}{ending}",
            )
        )
    theirs, ours = zip(*clauses, strict=True)
    return " and ".join(theirs), " , ".join(ours)


def _words(rng: Generator, count: int) -> list[str]:
    """Different words of two syllables."""
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    chosen = rng.permutation(len(syllables) ** 2)[:count]
    return [
        syllables[place // len(syllables)] + syllables[place % len(syllables)] for place in chosen
    ]
