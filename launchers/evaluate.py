"""Decode a task's test set and score it, or score files.

A model on a task, a row for each mode:

    python launchers/evaluate.py --model DIR --task glge/squad_qg --data DIR --split test --mode ar,nar \
        --output report.json --set nar.iterations=4

Any system's files:

    python launchers/evaluate.py score --predictions F --references F --metrics bleu,chrf,rouge --json OUT

GLGE's overall score, from the reports of its eight tasks:

    python launchers/evaluate.py overall --reports R1 … R8 --mode nar --json OUT
"""

from __future__ import annotations

import argparse
import json
import sys

from janus_pt.tasks.metrics import METRICS
from janus_pt.tasks.score import overall_of_reports, score_files
from janus_pt.utils.errors import entry_point
from janus_pt.utils.text_files import write_json


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `kind` is `score`, `overall` or `model`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = argv[0] if argv and argv[0] in ("score", "overall") else "model"
    parser.set_defaults(kind=kind)
    add = parser.add_argument
    if kind == "score":
        add("--predictions", required=True, metavar="FILE", help="one output a line")
        add(
            "--references",
            required=True,
            action="extend",
            nargs="+",
            metavar="FILE",
            help="one file or more",
        )
        add(
            "--sources",
            metavar="FILE",
            help="score lines with an identical source as one, as GLGE does",
        )
        add("--metrics", required=True, help=f"comma-separated: {','.join(METRICS)}")
        add(
            "--tokenize",
            default="13a",
            help="sacrebleu's tokenizer for BLEU (default: %(default)s)",
        )
        add(
            "--baseline",
            metavar="FILE",
            help="another system's predictions: paired bootstrap of BLEU and chrF",
        )
        add("--json", required=True, metavar="FILE", help="where the values go")
    elif kind == "overall":
        add(
            "--reports", required=True, nargs="+", metavar="FILE", help="reports of the eight tasks"
        )
        add("--mode", required=True, help="whose rows are taken")
        add("--json", required=True, metavar="FILE", help="where the values go")
    else:
        add("--model", required=True, help="folder of an exported model")
        add(
            "--task",
            required=True,
            help="nmt, nmt/de-en, glge/NAME or another row of janus_pt/tasks/table.py",
        )
        add("--data", required=True, help="the task's data folder")
        add("--split", default="test", help="(default: %(default)s)")
        add("--mode", default="ar", help="comma-separated ways to decode (default: %(default)s)")
        add(
            "--set",
            action="append",
            default=[],
            metavar="MODE.OPTION=VALUE",
            help="change a decoding option",
        )
        add("--batch-size", type=int, help="inputs decoded together; default: the model's")
        add("--output", required=True, metavar="FILE", help="report; predictions go beside it")
    return parser.parse_args(argv if kind == "model" else argv[1:])


def main() -> None:
    """Evaluate or score as the command line asks, and print what was found."""
    given = parse(sys.argv[1:])
    if given.kind == "model":
        from janus_pt.tasks.evaluate import evaluate, print_table  # imports torch

        report = evaluate(
            *(given.model, given.task, given.data, given.split, given.mode.split(",")),
            changes=given.set, batch_size=given.batch_size, output=given.output,
        )  # fmt: skip
        print_table(report)
        return
    if given.kind == "score":
        files = (given.predictions, given.references, given.metrics.split(","))
        found = score_files(*files, given.sources, given.baseline, given.tokenize)
    else:
        found = overall_of_reports(given.reports, given.mode)
    write_json(given.json, found)
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    entry_point(main)
