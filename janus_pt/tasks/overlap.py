"""Metrics on the words that outputs and references share: ROUGE, METEOR, CoQA's F1; and distinct n-grams."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from janus_pt.tasks.outputs import Metrics, Outputs

SENTENCE_SEPARATOR = "<S_SEP>"
"""Stands between the sentences of a summary in GLGE's files."""
COCO_BETA = 1.2
"""Weight of recall in COCO's ROUGE-L."""
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge(outputs: Outputs) -> Metrics:
    """ROUGE-1, 2 and L, and the summary-level ROUGE-L over sentences between `<S_SEP>`: mean F1 of rouge-score.

    Words are stemmed (Porter), as in ROUGE-1.5.5 with -m, which GLGE's scripts call. The best reference counts.
    """
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    totals: Counter[str] = Counter()
    for prediction, references in outputs.mapped(_sentence_a_line):
        for name, score in scorer.score_multi(references, prediction).items():
            totals[name] += score.fmeasure
    how = "rouge-score, F1, Porter stemmer; rougeLsum: sentences between <S_SEP>"
    return Metrics(
        {name: 100 * total / len(outputs) for name, total in totals.items()}, {"rouge": how}
    )


class _Whitespace:
    """rouge-score's tokenizer for COCO's ROUGE-L."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def coco_rouge_l(outputs: Outputs) -> Metrics:
    """ROUGE-L of COCO's caption evaluation and nlg-eval, GLGE's for question generation: whitespace tokens, best
    precision and best recall over the references, F with `COCO_BETA`."""
    scorer = RougeScorer(["rougeL"], tokenizer=_Whitespace())
    total, weight = 0.0, COCO_BETA**2
    for prediction, references in outputs:
        scores = [scorer.score(reference, prediction)["rougeL"] for reference in references]
        precision, recall = max(s.precision for s in scores), max(s.recall for s in scores)
        if precision and recall:
            total += (1 + weight) * precision * recall / (recall + weight * precision)
    return Metrics(
        {"coco_rougeL": 100 * total / len(outputs)},
        {"coco_rougeL": "as COCO and nlg-eval, beta 1.2"},
    )


class _NoSynonyms:
    """Stands where NLTK takes WordNet, and knows no synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []


def meteor(outputs: Outputs) -> Metrics:
    """NLTK's METEOR (Banerjee and Lavie 2005) with exact and stem matches: mean over outputs of the best reference.

    WordNet is left out, so that nothing must be downloaded. Published numbers are mostly METEOR 1.5's, with synonyms,
    paraphrases and other weights: they are not on this scale.
    """
    total = sum(
        meteor_score([r.split() for r in references], prediction.split(), wordnet=_NoSynonyms())
        for prediction, references in outputs
    )
    how = "NLTK, exact and stem matches only (no WordNet), alpha 0.9, beta 3, gamma 0.5; not METEOR 1.5"
    return Metrics({"meteor": 100 * total / len(outputs)}, {"meteor": how})


def distinct(outputs: Outputs) -> Metrics:
    """Distinct-1 and 2 (Li et al. 2016): different n-grams over all n-grams of all predictions."""
    values = {}
    for order in (1, 2):
        grams: Counter[tuple[str, ...]] = Counter()
        for tokens in map(str.split, outputs.predictions):
            grams.update(zip(*(tokens[start:] for start in range(order)), strict=False))
        values[f"distinct{order}"] = 100 * len(grams) / max(1, grams.total())
    return Metrics(values, {"distinct": "corpus, whitespace tokens"})


def coqa_f1(outputs: Outputs) -> Metrics:
    """CoQA's F1: words shared with the gold answer, without case, punctuation and articles; the best reference."""
    total = sum(
        max(_f1(_words(prediction), _words(r)) for r in references)
        for prediction, references in outputs
    )
    how = "lower case, punctuation and articles removed"
    return Metrics({"coqa_f1": 100 * total / len(outputs)}, {"coqa_f1": how})


def _f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    if not prediction or not reference:
        return float(list(prediction) == list(reference))
    shared = (Counter(prediction) & Counter(reference)).total()
    return 2 * shared / (len(prediction) + len(reference))


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _sentence_a_line(text: str) -> str:
    return text.replace(SENTENCE_SEPARATOR, "\n")
