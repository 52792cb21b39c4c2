"""Decode text with an exported model: one line in, one line out, in order.

From file to file:  python launchers/generate.py --model DIR --mode ar --num-beams 4 --input in.txt --output out.txt
In a pipe:          cat in.txt | python launchers/generate.py --model DIR --mode nar --iterations 10
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from janus_pt.api import MODES, JanusModel, check_options
from janus_pt.errors import entry_point
from janus_pt.generate.lines import generate_lines

OPTIONS = (
    ("--num-beams", int, "ar: width of the beam search; 1, the default, is greedy search"),
    ("--length-penalty", float, "ar: power of the length by which a log-probability is divided; default 1"),
    ("--iterations", int, "nar: decoder passes; default 4"),
    ("--length-beam", int, "nar: lengths that are tried; default 1"),
    ("--max-length", int, "longest output in tokens; default 200, or what the model's positions allow"),
    ("--min-length", int, "shortest output in tokens; default 1"),
)


def main() -> None:
    """Decode the input; the rate goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of an exported model")
    parser.add_argument("--mode", choices=MODES, default="ar", help="ar: left to right; nar: mask-predict")
    parser.add_argument("--input", default="-", help="UTF-8 text; -: standard input")
    parser.add_argument("--output", default="-", help="-: standard output")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: as the weights are stored")
    parser.add_argument("--batch-size", type=int, default=32, help="lines decoded together")
    parser.add_argument("--report", help="JSON file for the number of sentences, the seconds and the rate")
    for option, kind, meaning in OPTIONS:
        parser.add_argument(option, type=kind, default=argparse.SUPPRESS, help=meaning)
    options = vars(parser.parse_args())
    folder, source, target, dtype, report = map(options.pop, ("model", "input", "output", "dtype", "report"))
    check_options(**options)
    model = JanusModel.from_pretrained(folder, getattr(torch, dtype) if dtype else None)
    start = time.monotonic()
    lines = generate_lines(model, source, target, **options)
    seconds = time.monotonic() - start
    print(f"{lines} sentences in {seconds:.1f} s, {lines / seconds:.1f} sentences/s", file=sys.stderr)
    if report:
        numbers = {"mode": options["mode"], "sentences": lines, "seconds": seconds, "sentences_per_s": lines / seconds}
        Path(report).write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    entry_point(main)
