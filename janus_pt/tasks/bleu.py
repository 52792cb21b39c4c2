"""Metrics on n-grams of translations: sacrebleu's, and two more definitions of BLEU from papers."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from typing import cast

from sacrebleu.metrics.base import Metric as SacrebleuMetric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from janus_pt.tasks.outputs import Outputs, Scores
from janus_pt.utils.extras import require

COCO_MATCHES_EPSILON, COCO_TOTALS_EPSILON = 1e-15, 1e-9
"""What COCO's BLEU adds to the matches and to the totals, which is all its smoothing."""
SMOOTHED_ORDERS = 4
"""Orders of n-grams that NLTK's smoothing method 7 sees in GLGE's script."""
BOOTSTRAP_SAMPLES = 1000
COMPOUND = re.compile(r"(\S)-(\S)")


def reference_streams(outputs: Outputs) -> list[list[str | None]]:
    """The references as sacrebleu reads them: all first references, all second ones, and so on.

    An output with fewer references than others has None in the later streams.
    """
    return [list(stream) for stream in zip_longest(*outputs.references)]


def sacrebleu_scores(name: str, metric: SacrebleuMetric, outputs: Outputs) -> Scores:
    """The corpus score of one of sacrebleu's metrics, with sacrebleu's signature."""
    streams = reference_streams(outputs)
    score = metric.corpus_score(outputs.predictions, streams).score  # type: ignore[arg-type]
    # The signature names the number of references, which sacrebleu knows only after scoring.
    return Scores({name: score}, {name: metric.get_signature().format()})


def bleu(outputs: Outputs, tokenize: str = "13a") -> Scores:
    """sacrebleu's BLEU; `tokenize` is one of its tokenizers."""
    return sacrebleu_scores("bleu", BLEU(tokenize=tokenize), outputs)


def chrf(outputs: Outputs) -> Scores:
    """sacrebleu's chrF2."""
    return sacrebleu_scores("chrf", CHRF(), outputs)


def ter(outputs: Outputs) -> Scores:
    """sacrebleu's TER, an error rate: less is better."""
    return sacrebleu_scores("ter", TER(), outputs)


def legacy_compound_bleu(outputs: Outputs) -> Scores:
    """Compound-split tokenised BLEU, as older papers on WMT14 report it.

    sacrebleu's 13a tokens in place of Moses', hyphenated words split, no smoothing; otherwise as
    fairseq's `compound_split_bleu.sh`. Comparable to no other BLEU.
    """
    tokenizer = Tokenizer13a()

    def split_compounds(text: str) -> str:
        return COMPOUND.sub(r"\1 ##AT##-##AT## \2", tokenizer(text))

    # `force` silences sacrebleu's warning about text that is tokenised already, as this one is.
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return sacrebleu_scores("legacy_compound_bleu", metric, outputs.map_texts(split_compounds))


def coco_bleu(outputs: Outputs) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 of COCO's caption evaluation and nlg-eval, 0 to 100.

    GLGE scores question generation with it. Tokens are split at whitespace; the brevity penalty
    takes the reference nearest in length.
    """
    # sacrebleu counts the n-grams; COCO's own smoothing and penalty are applied to its counts.
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    streams = reference_streams(outputs)
    counts = metric.corpus_score(outputs.predictions, streams)  # type: ignore[arg-type]
    ratio = (counts.sys_len + COCO_MATCHES_EPSILON) / (counts.ref_len + COCO_TOTALS_EPSILON)
    brevity_penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product = 1.0
    scores = []
    for order, (matches, total) in enumerate(zip(counts.counts, counts.totals, strict=True), 1):
        product *= (matches + COCO_MATCHES_EPSILON) / (total + COCO_TOTALS_EPSILON)
        geometric_mean = product ** (1 / order)
        scores.append(100 * brevity_penalty * geometric_mean)
    return scores


def bleu4(outputs: Outputs) -> Scores:
    """Corpus BLEU-4 as `coco_bleu` defines it."""
    signature = "corpus, as COCO and nlg-eval, whitespace tokens"
    return Scores({"bleu4": coco_bleu(outputs)[3]}, {"bleu4": signature})


def corpus_bleu(outputs: Outputs) -> Scores:
    """Corpus BLEU-1 and BLEU-2 as `coco_bleu` defines them."""
    scores = coco_bleu(outputs)
    values = {"corpus_bleu1": scores[0], "corpus_bleu2": scores[1]}
    signature = "corpus, as COCO and nlg-eval, whitespace tokens"
    return Scores(values, {"corpus_bleu": signature})


def sentence_bleu_means(outputs: Outputs) -> Scores:
    """Mean sentence BLEU-1 and BLEU-2 with NLTK's smoothing method 7: GLGE's for PersonaChat.

    Method 7 takes precision + 1 for the order below the first, so that the values of good sentences
    exceed 100.
    """
    values = {f"sentence_bleu{order}": _mean_sentence_bleu(outputs, order) for order in (1, 2)}
    signature = "mean of sentences, NLTK smoothing method 7, whitespace tokens"
    return Scores(values, {"sentence_bleu": signature})


def _mean_sentence_bleu(outputs: Outputs, order: int) -> float:
    """Mean over the outputs of NLTK's sentence BLEU of orders 1 to `order`, times 100."""
    nltk = require("nltk.translate.bleu_score", "tasks")
    smoothing = nltk.SmoothingFunction().method7
    # Method 7 averages neighbouring orders. GLGE's script gives four, the higher ones with weight
    # 0; with one or two the values would be different.
    weights = [1 / order] * order + [0] * (SMOOTHED_ORDERS - order)
    total = 0.0
    for prediction, references in outputs:
        tokens = prediction.split()
        # NLTK divides by the length: an empty prediction scores 0.
        if not tokens:
            continue
        reference_tokens = [reference.split() for reference in references]
        with warnings.catch_warnings():
            # NLTK warns of sentences without 4-grams, which the smoothing is there for.
            warnings.simplefilter("ignore")
            total += nltk.sentence_bleu(reference_tokens, tokens, weights, smoothing)
    return 100 * total / len(outputs)


def paired_bootstrap(
    outputs: Outputs, baseline: Sequence[str], tokenize: str = "13a"
) -> dict[str, dict[str, float]]:
    """sacrebleu's paired bootstrap of BLEU and chrF against another system's predictions.

    Args:
        baseline: the other system's predictions, for the same references.

    Returns:
        metric -> `system` and `baseline`, the mean over the resamples; `system_ci` and
        `baseline_ci`, half the width of the 95 % interval; `p_value` of the null hypothesis that
        both are equally good; `difference`, the system's score minus the baseline's.
    """
    systems = [("baseline", list(baseline)), ("system", list(outputs.predictions))]
    metrics = {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF()}
    streams = reference_streams(outputs)
    test = PairedTest(systems, metrics, streams, "bs", BOOTSTRAP_SAMPLES)  # type: ignore[arg-type]
    _, columns = test()
    # The column "System" has the systems' names; the others come in the order of `metrics`.
    results = [results for name, results in columns.items() if name != "System"]
    comparisons = {}
    for name, pair in zip(metrics, results, strict=True):
        baseline_result, system_result = cast(list[Result], pair)
        comparisons[name] = _comparison(baseline_result, system_result)
    return comparisons


def _comparison(baseline: Result, system: Result) -> dict[str, float]:
    """sacrebleu's results of two systems as plain numbers."""
    numbers: dict[str, float | None] = {
        "baseline": baseline.mean,
        "baseline_ci": baseline.ci,
        "system": system.mean,
        "system_ci": system.ci,
        "p_value": system.p_value,
        "difference": system.score - baseline.score,
    }
    # sacrebleu gives numpy's numbers, which JSON does not know. Only its other tests give None.
    return {name: float(number) for name, number in numbers.items() if number is not None}
