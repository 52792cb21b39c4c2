"""Metrics by name. Every value is on the scale of 0 to 100 and comes with a signature.

A new metric is a function from `Outputs` to `Scores` and one row of `METRICS`: see
docs/extending/add_a_metric.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU

from janus_pt.tasks import bleu, error_rates, overlap
from janus_pt.tasks.outputs import Outputs, Scores
from janus_pt.tasks.significance import Sums, paired_bootstrap_of_sums
from janus_pt.utils.errors import UserError
from janus_pt.utils.extras import require
from janus_pt.utils.suggest import did_you_mean

DEFAULT_TOKENIZER = "13a"
"""sacrebleu's tokenizer for `bleu`, and its own default."""


@dataclass(frozen=True)
class Metric:
    """One row of `METRICS`.

    Attributes:
        compute: the scores of some outputs; their values are called as in `values`.
        values: names of the values, of one metric or of several computed together.
        higher_is_better: whether a larger value means better outputs; false for error rates.
        package: package of the extra `tasks` that `compute` imports, if any.
        sums: of a metric with one value that is a ratio of sums over the outputs: its sums, for
            intervals and comparisons.
    """

    compute: Callable[[Outputs], Scores]
    values: tuple[str, ...]
    higher_is_better: bool = True
    package: str | None = None
    sums: Callable[[Outputs], Sums] | None = None


def _error_rate(
    name: str, compute_scores: Callable[[Outputs], Scores], sums: Callable[[Outputs], Sums]
) -> Metric:
    """A row of jiwer's error rates."""
    return Metric(compute_scores, (name,), higher_is_better=False, package="jiwer", sums=sums)


METRICS: Mapping[str, Metric] = {
    "bleu": Metric(bleu.bleu, ("bleu",)),
    "chrf": Metric(bleu.chrf, ("chrf",)),
    "ter": Metric(bleu.ter, ("ter",), higher_is_better=False),
    "legacy_compound_bleu": Metric(bleu.legacy_compound_bleu, ("legacy_compound_bleu",)),
    "bleu4": Metric(bleu.bleu4, ("bleu4",)),
    "corpus_bleu": Metric(bleu.corpus_bleu, ("corpus_bleu1", "corpus_bleu2")),
    "sentence_bleu": Metric(
        bleu.sentence_bleu_means, ("sentence_bleu1", "sentence_bleu2"), package="nltk"
    ),
    "rouge": Metric(overlap.rouge, overlap.ROUGE_TYPES, package="rouge_score"),
    "coco_rougeL": Metric(overlap.coco_rouge_l, ("coco_rougeL",), package="rouge_score"),
    "meteor": Metric(overlap.meteor, ("meteor",), package="nltk"),
    "distinct": Metric(overlap.distinct, ("distinct1", "distinct2")),
    "coqa_f1": Metric(overlap.coqa_f1, ("coqa_f1",)),
    "exact_match": Metric(error_rates.exact_match, ("exact_match",), sums=error_rates.match_sums),
    "wer": _error_rate("wer", error_rates.word_error_rate, error_rates.word_sums),
    "cer": _error_rate("cer", error_rates.character_error_rate, error_rates.character_sums),
    "per": _error_rate("per", error_rates.phoneme_error_rate, error_rates.word_sums),
}


def values_to_maximize(names: Sequence[str]) -> list[str]:
    """Names of the values that the metrics called `names` give and of which more is better."""
    return [
        value for name in names if METRICS[name].higher_is_better for value in METRICS[name].values
    ]


def check_metrics(names: Sequence[str], tokenize: str = DEFAULT_TOKENIZER) -> None:
    """Check that metrics can be computed here, so that no decoding is done in vain.

    Raises:
        UserError: a metric or sacrebleu's tokenizer is unknown, or a package that it needs is
            not installed.
    """
    if not names:
        raise UserError(f"no metrics asked for; there are: {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            suggestion = did_you_mean(name, METRICS)
            raise UserError(
                f"metrics: there is no {name!r}; {suggestion}There are: {', '.join(METRICS)}"
            )
        # Imported here, so that a missing package is reported now and not after the decoding.
        package = METRICS[name].package
        if package is not None:
            require(package, "tasks")
    _check_tokenizer(tokenize)


def _check_tokenizer(name: str) -> None:
    if name not in BLEU.TOKENIZERS:
        available = ", ".join(BLEU.TOKENIZERS)
        raise UserError(f"tokenize: sacrebleu has no {name!r}; it has: {available}")
    try:
        BLEU(tokenize=name)
    # Some tokenizers need another package or a file from the network; sacrebleu then raises these.
    except (RuntimeError, ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"tokenize: sacrebleu cannot use {name!r} here: {reason}") from None


def compute(outputs: Outputs, names: Sequence[str], tokenize: str = DEFAULT_TOKENIZER) -> Scores:
    """Compute the metrics called `names`.

    Args:
        tokenize: sacrebleu's tokenizer for `bleu`; the other metrics have none to choose.

    Raises:
        UserError: as `check_metrics`.
    """
    check_metrics(names, tokenize)
    values: dict[str, float] = {}
    signatures: dict[str, str] = {}
    # A name given twice is computed once.
    for name in dict.fromkeys(names):
        # Only BLEU has a tokenizer to choose.
        is_bleu = name == "bleu"
        scores = bleu.bleu(outputs, tokenize) if is_bleu else METRICS[name].compute(outputs)
        values.update(scores.values)
        signatures.update(scores.signatures)
    return Scores(values, signatures)


def compare_outputs(name: str, outputs: Outputs, baseline: Sequence[str]) -> dict[str, float]:
    """Paired bootstrap of one metric against another system's predictions.

    Args:
        name: a metric with `sums`, or `bleu`.
        baseline: the other system's predictions, for the same references.

    Returns:
        As each metric of `bleu.paired_bootstrap`.
    """
    sums = METRICS[name].sums
    if sums is None:
        return bleu.paired_bootstrap(outputs, baseline)[name]
    return paired_bootstrap_of_sums(sums(outputs), sums(Outputs(baseline, outputs.references)))


def compared_metric(names: Sequence[str]) -> str:
    """The metric of a task that systems are compared by: its first, if it has sums, else BLEU."""
    return names[0] if METRICS[names[0]].sums is not None else "bleu"
