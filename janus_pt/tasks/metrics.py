"""Scoring: metrics by name. Every value is on the scale of 0 to 100 and comes with how it was computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial

from sacrebleu.metrics.bleu import BLEU

from janus_pt.tasks import bleu, overlap
from janus_pt.tasks.outputs import Metrics, Outputs
from janus_pt.utils.errors import UserError

METRICS: Mapping[str, Callable[[Outputs], Metrics]] = {
    "bleu": bleu.bleu,
    "chrf": bleu.chrf,
    "ter": bleu.ter,
    "legacy_compound_bleu": bleu.legacy_compound_bleu,
    "bleu4": bleu.bleu4,
    "corpus_bleu": bleu.corpus_bleu,
    "sentence_bleu": bleu.sentence_bleu_means,
    "rouge": overlap.rouge,
    "coco_rougeL": overlap.coco_rouge_l,
    "meteor": overlap.meteor,
    "distinct": overlap.distinct,
    "coqa_f1": overlap.coqa_f1,
}


def check_metrics(names: Sequence[str], tokenize: str = "13a") -> None:
    """Raise `UserError` unless all metrics, and sacrebleu's tokenizer, are known."""
    if not names:
        raise UserError(f"no metrics asked for; there are: {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            near = get_close_matches(name, METRICS, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"metrics: there is no {name!r}; {meant}There are: {', '.join(METRICS)}"
            )
    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(
            f"tokenize: sacrebleu has no {tokenize!r}; it has: {', '.join(BLEU.TOKENIZERS)}"
        )
    try:
        BLEU(tokenize=tokenize)
    except (
        RuntimeError,
        ImportError,
        OSError,
    ) as error:  # it wants another package, or a file from the network
        raise UserError(
            f"tokenize: sacrebleu cannot use {tokenize!r} here: {' '.join(str(error).split())}"
        ) from None


def compute(outputs: Outputs, names: Sequence[str], tokenize: str = "13a") -> Metrics:
    """The metrics called `names`; `tokenize` is the tokenizer of `bleu`.

    Raises:
        UserError: no metric is called so.
    """
    check_metrics(names, tokenize)
    values: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for name in dict.fromkeys(names):
        metric = partial(bleu.bleu, tokenize=tokenize) if name == "bleu" else METRICS[name]
        found = metric(outputs)
        values.update(found.values)
        signatures.update(found.signatures)
    return Metrics(values, signatures)
