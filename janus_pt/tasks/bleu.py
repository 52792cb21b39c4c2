"""Metrics on n-grams of translations: sacrebleu's own, and two other definitions of BLEU that papers report."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from janus_pt.tasks.outputs import Metrics, Outputs

TINY, SMALL = 1e-15, 1e-9
"""What COCO's BLEU adds to matches and to totals; its smoothing, if one can call it so."""
SMOOTHED_ORDERS = 4
BOOTSTRAP_SAMPLES = 1000
COMPOUND = re.compile(r"(\S)-(\S)")


def streams(outputs: Outputs) -> list[list[str | None]]:
    """The references as sacrebleu reads them: first references, second ones …; None where an output has fewer."""
    return [list(stream) for stream in zip_longest(*outputs.references)]


def sacrebleu_metric(name: str, metric: Metric, outputs: Outputs) -> Metrics:
    """One of sacrebleu's corpus metrics, with its signature."""
    score = metric.corpus_score(outputs.predictions, streams(outputs)).score  # type: ignore[arg-type]
    return Metrics({name: score}, {name: metric.get_signature().format()})


def bleu(outputs: Outputs, tokenize: str = "13a") -> Metrics:
    """sacrebleu's BLEU; `tokenize` is one of its tokenizers."""
    return sacrebleu_metric("bleu", BLEU(tokenize=tokenize), outputs)


def chrf(outputs: Outputs) -> Metrics:
    """sacrebleu's chrF2."""
    return sacrebleu_metric("chrf", CHRF(), outputs)


def ter(outputs: Outputs) -> Metrics:
    """sacrebleu's TER: less is better."""
    return sacrebleu_metric("ter", TER(), outputs)


def legacy_compound_bleu(outputs: Outputs) -> Metrics:
    """Compound-split tokenised BLEU, as older papers on WMT14 report it; comparable to nothing but itself.

    sacrebleu's 13a tokens (instead of Moses'), hyphened words taken apart, no smoothing; as fairseq's
    `compound_split_bleu.sh` otherwise.
    """
    tokenizer = Tokenizer13a()

    def split(text: str) -> str:
        return COMPOUND.sub(r"\1 ##AT##-##AT## \2", tokenizer(text))

    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return sacrebleu_metric("legacy_compound_bleu", metric, outputs.mapped(split))


def coco_bleu(outputs: Outputs) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 of COCO's caption evaluation and nlg-eval (GLGE's question generation), 0 to 100.

    Tokens are what whitespace separates; the reference nearest in length counts for the brevity penalty.
    """
    found = BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(
        outputs.predictions,
        streams(outputs),  # type: ignore[arg-type]
    )
    ratio = (found.sys_len + TINY) / (found.ref_len + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for order, (matches, total) in enumerate(zip(found.counts, found.totals, strict=True), start=1):
        product *= (matches + TINY) / (total + SMALL)
        scores.append(100 * penalty * product ** (1 / order))
    return scores


def bleu4(outputs: Outputs) -> Metrics:
    """Corpus BLEU-4 as `coco_bleu` defines it."""
    return Metrics(
        {"bleu4": coco_bleu(outputs)[3]},
        {"bleu4": "corpus, as COCO and nlg-eval, whitespace tokens"},
    )


def corpus_bleu(outputs: Outputs) -> Metrics:
    """Corpus BLEU-1 and BLEU-2 as `coco_bleu` defines them."""
    scores = coco_bleu(outputs)
    how = "corpus, as COCO and nlg-eval, whitespace tokens"
    return Metrics({f"corpus_bleu{n}": scores[n - 1] for n in (1, 2)}, {"corpus_bleu": how})


def sentence_bleu_means(outputs: Outputs) -> Metrics:
    """Mean sentence BLEU-1 and BLEU-2 with NLTK's smoothing method 7: GLGE's PersonaChat.

    Method 7 averages neighbouring orders, so four orders are given, the last two with weight 0, as GLGE's script
    does; with one or two the numbers would be others. The method takes precision + 1 for the order below the first, so
    that the values of good sentences exceed 100.
    """
    smoothing = SmoothingFunction().method7
    values = {}
    for order in (1, 2):
        weights = [1 / order] * order + [0] * (SMOOTHED_ORDERS - order)
        total = 0.0
        for prediction, references in outputs:
            tokens = prediction.split()
            if tokens:
                with (
                    warnings.catch_warnings()
                ):  # short sentences have no 4-grams; smoothing is there for that
                    warnings.simplefilter("ignore")
                    total += sentence_bleu(
                        [r.split() for r in references], tokens, weights, smoothing
                    )
        values[f"sentence_bleu{order}"] = 100 * total / len(outputs)
    return Metrics(
        values, {"sentence_bleu": "mean of sentences, NLTK smoothing method 7, whitespace tokens"}
    )


def paired_bootstrap(
    outputs: Outputs, baseline: Sequence[str], tokenize: str = "13a"
) -> dict[str, dict[str, float]]:
    """sacrebleu's paired bootstrap of BLEU and chrF against another system's outputs for the same references.

    For each metric: the `system`'s and the `baseline`'s mean over resamples, half the width of their 95 % intervals
    (`system_ci`, `baseline_ci`), `p_value` of the null hypothesis that both are equally good, and `difference`, by how
    much the system's score itself is above the baseline's.
    """
    systems = [("baseline", list(baseline)), ("system", list(outputs.predictions))]
    metrics = {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF()}
    test = PairedTest(systems, metrics, streams(outputs), "bs", BOOTSTRAP_SAMPLES)  # type: ignore[arg-type]
    found: dict[str, list[Any]] = test()[1]
    results = [values for name, values in found.items() if name != "System"]
    return {name: _compared(*pair) for name, pair in zip(metrics, results, strict=True)}


def _compared(baseline: Any, system: Any) -> dict[str, float]:
    """Two of sacrebleu's results as plain numbers."""
    means = {
        "baseline": baseline.mean,
        "baseline_ci": baseline.ci,
        "system": system.mean,
        "system_ci": system.ci,
    }
    means |= {"p_value": system.p_value, "difference": system.score - baseline.score}
    return {name: float(value) for name, value in means.items()}
