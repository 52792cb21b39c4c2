"""Metrics on shared words: ROUGE, METEOR, CoQA's F1; and distinct n-grams."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

from janus_pt.tasks.outputs import Outputs, Scores
from janus_pt.utils.extras import require

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""What `rouge` computes, by rouge-score's names."""
SENTENCE_SEPARATOR = "<S_SEP>"
"""Stands between the sentences of a summary in GLGE's files."""
COCO_BETA = 1.2
"""Weight of recall in COCO's ROUGE-L."""
ARTICLES = re.compile(r"\b(a|an|the)\b")
REMOVE_PUNCTUATION = str.maketrans("", "", string.punctuation)
DISTINCT_ORDERS = (1, 2)


def rouge(outputs: Outputs) -> Scores:
    """ROUGE-1, 2 and L, and the summary-level ROUGE-L over sentences between `<S_SEP>`.

    Mean F1 of rouge-score; of several references the best counts. Words are stemmed (Porter), as in
    ROUGE-1.5.5 with -m, which GLGE's scripts call.
    """
    scorer = require("rouge_score.rouge_scorer", "tasks").RougeScorer(
        list(ROUGE_TYPES), use_stemmer=True
    )
    totals = dict.fromkeys(ROUGE_TYPES, 0.0)
    # rouge-score reads a line as a sentence.
    for prediction, references in outputs.map_texts(_one_sentence_a_line):
        for name, score in scorer.score_multi(references, prediction).items():
            totals[name] += score.fmeasure
    values = {name: 100 * total / len(outputs) for name, total in totals.items()}
    signature = "rouge-score, F1, Porter stemmer; rougeLsum: sentences between <S_SEP>"
    return Scores(values, {"rouge": signature})


class _WhitespaceTokenizer:
    """rouge-score's tokenizer for COCO's ROUGE-L."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def coco_rouge_l(outputs: Outputs) -> Scores:
    """ROUGE-L of COCO's caption evaluation and nlg-eval, which GLGE takes for questions.

    Whitespace tokens; F of the best precision and the best recall over the references, which may
    come from two of them, with `COCO_BETA`.
    """
    scorer = require("rouge_score.rouge_scorer", "tasks").RougeScorer(
        ["rougeL"], tokenizer=_WhitespaceTokenizer()
    )
    beta_squared = COCO_BETA**2
    total = 0.0
    for prediction, references in outputs:
        scores = [scorer.score(reference, prediction)["rougeL"] for reference in references]
        precision = max(score.precision for score in scores)
        recall = max(score.recall for score in scores)
        # Nothing in common: F is 0, and its formula would divide by 0.
        if precision and recall:
            weighted_sum = recall + beta_squared * precision
            total += (1 + beta_squared) * precision * recall / weighted_sum
    value = 100 * total / len(outputs)
    return Scores({"coco_rougeL": value}, {"coco_rougeL": "as COCO and nlg-eval, beta 1.2"})


class _NoSynonyms:
    """Takes the place of NLTK's WordNet, and knows no synonym."""

    def synsets(self, word: str) -> list[object]:
        return []


def meteor(outputs: Outputs) -> Scores:
    """NLTK's METEOR (Banerjee and Lavie 2005) with exact and stem matches.

    Mean over the outputs of the best reference's score. WordNet is not used, so that nothing must
    be downloaded. Published values are mostly METEOR 1.5's, with synonyms, paraphrases and other
    weights: they are not on this scale.
    """
    meteor_score = require("nltk.translate.meteor_score", "tasks").meteor_score
    total = 0.0
    for prediction, references in outputs:
        reference_tokens = [reference.split() for reference in references]
        total += meteor_score(reference_tokens, prediction.split(), wordnet=_NoSynonyms())
    signature = (
        "NLTK, exact and stem matches only (no WordNet), alpha 0.9, beta 3, gamma 0.5; "
        "not METEOR 1.5"
    )
    return Scores({"meteor": 100 * total / len(outputs)}, {"meteor": signature})


def distinct(outputs: Outputs) -> Scores:
    """Distinct-1 and 2 (Li et al. 2016): different n-grams over all n-grams of all predictions."""
    values = {}
    for order in DISTINCT_ORDERS:
        counts: Counter[tuple[str, ...]] = Counter()
        for prediction in outputs.predictions:
            counts.update(_ngrams(prediction.split(), order))
        # Predictions may all be shorter than the order: there is no n-gram then, the value is 0.
        total = max(1, counts.total())
        values[f"distinct{order}"] = 100 * len(counts) / total
    return Scores(values, {"distinct": "corpus, whitespace tokens"})


def _ngrams(tokens: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    for start in range(len(tokens) - order + 1):
        yield tuple(tokens[start : start + order])


def coqa_f1(outputs: Outputs) -> Scores:
    """CoQA's F1: words shared with the gold answer, without case, punctuation and articles.

    Mean over the outputs of the best reference's F1.
    """
    total = 0.0
    for prediction, references in outputs:
        words = _answer_words(prediction)
        total += max(_f1(words, _answer_words(reference)) for reference in references)
    signature = "lower case, punctuation and articles removed"
    return Scores({"coqa_f1": 100 * total / len(outputs)}, {"coqa_f1": signature})


def _f1(prediction: list[str], reference: list[str]) -> float:
    # As CoQA's script: an answer without words is right only where the gold answer has none.
    if not prediction or not reference:
        return float(prediction == reference)
    shared = (Counter(prediction) & Counter(reference)).total()
    return 2 * shared / (len(prediction) + len(reference))


def _answer_words(text: str) -> list[str]:
    """The words that CoQA's script compares."""
    without_punctuation = text.lower().translate(REMOVE_PUNCTUATION)
    return ARTICLES.sub(" ", without_punctuation).split()


def _one_sentence_a_line(text: str) -> str:
    return text.replace(SENTENCE_SEPARATOR, "\n")
