"""Score files: any system's predictions against references."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from janus_pt.tasks.bleu import paired_bootstrap
from janus_pt.tasks.metrics import DEFAULT_TOKENIZER, METRICS, check_metrics, compute
from janus_pt.tasks.outputs import pair_up
from janus_pt.utils.commands import add_json_flag
from janus_pt.utils.text_files import check_equally_long, print_json, read_lines, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate.py score`."""
    parser.add_argument("--predictions", required=True, metavar="FILE", help="one output a line")
    parser.add_argument(
        "--references",
        required=True,
        action="extend",
        nargs="+",
        metavar="FILE",
        help="one file or several, line by line",
    )
    parser.add_argument(
        "--sources",
        metavar="FILE",
        help="score lines with an identical source as one, as GLGE does",
    )
    parser.add_argument("--metrics", required=True, help=f"comma-separated: {','.join(METRICS)}")
    parser.add_argument(
        "--tokenize",
        default=DEFAULT_TOKENIZER,
        help="sacrebleu's tokenizer for BLEU (default: %(default)s)",
    )
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        help="another system's predictions: paired bootstrap of BLEU and chrF",
    )
    add_json_flag(parser, "file for the values", required=True)


def run(args: argparse.Namespace) -> None:
    """Score as the command line asks; print and write the values."""
    scores = score_files(
        args.predictions,
        args.references,
        args.metrics.split(","),
        args.sources,
        args.baseline,
        args.tokenize,
    )
    # The file first: if it cannot be written, nothing must look done.
    write_json(args.json, scores)
    print_json(scores)


def score_files(
    predictions: str,
    references: Sequence[str],
    metrics: Sequence[str],
    sources: str | None = None,
    baseline: str | None = None,
    tokenize: str = DEFAULT_TOKENIZER,
) -> dict[str, Any]:
    """Score a file of predictions, one a line.

    Args:
        references: files with a reference for each prediction.
        sources: file whose identical lines are one output; see `pair_up`.
        baseline: file of another system's predictions; adds `paired_bootstrap`.
        tokenize: sacrebleu's tokenizer for BLEU.

    Returns:
        metric -> value, and `signatures`, `lines`, `outputs` (fewer than lines where sources group
        them).

    Raises:
        UserError: a file cannot be read or has another number of lines; a metric is unknown.
    """
    # Before the files are read: large ones take time, and a typing error is found at once.
    check_metrics(metrics, tokenize)
    optional = [name for name in (sources, baseline) if name]
    lines = {name: read_lines(name) for name in (predictions, *references, *optional)}
    check_equally_long(lines)
    reference_lines = [lines[name] for name in references]
    source_lines = lines[sources] if sources else None
    outputs = pair_up(lines[predictions], reference_lines, source_lines)
    scores = compute(outputs, metrics, tokenize)
    result: dict[str, Any] = {
        **scores.values,
        "signatures": scores.signatures,
        "lines": len(lines[predictions]),
        "outputs": len(outputs),
    }
    if baseline:
        # The baseline is grouped in the same way, so that both have one prediction for an output.
        other = pair_up(lines[baseline], reference_lines, source_lines)
        result["paired_bootstrap"] = paired_bootstrap(outputs, other.predictions, tokenize)
    return result
