"""Decode text with an exported model: one line in, one line out, in order.

From file to file:  python launchers/generate.py --model DIR --mode ar --num-beams 4 --input in.txt --output out.txt
In a pipe:          cat in.txt | python launchers/generate.py --model DIR --mode nar --iterations 10
Several processes:  python launchers/generate.py --model DIR --mode speculative --workers 4 --input in.txt > out.txt
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch

from janus_pt.generate.modes import check_options
from janus_pt.inference.cli import add_decoding_flags
from janus_pt.inference.janus_model import BATCH_SIZE, MAX_BATCH_TOKENS, JanusModel
from janus_pt.inference.text_files import generate_lines
from janus_pt.utils.errors import UserError, entry_point


def parse_arguments() -> argparse.Namespace:
    """The command line; of the modes' options only those that were given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of an exported model")
    parser.add_argument("--input", default="-", help="UTF-8 text; -: standard input")
    parser.add_argument("--output", default="-", help="-: standard output")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: as the weights are stored"
    )
    parser.add_argument(
        "--quantize", choices=["int8"], help="int8: quantised linear layers, on a CPU"
    )
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, help="lines decoded together at most"
    )
    parser.add_argument(
        "--max-batch-tokens", type=int, default=MAX_BATCH_TOKENS, help="source tokens in a batch"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that decode; they share the cores"
    )
    parser.add_argument(
        "--report", help="JSON file for the number of sentences, the seconds and the rate"
    )
    add_decoding_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Decode the input; the rate goes to standard error."""
    options = vars(parse_arguments())
    folder, source, target, dtype, quantize, report = map(
        options.pop, ("model", "input", "output", "dtype", "quantize", "report")
    )
    batching = {name: options.pop(name) for name in ("batch_size", "max_batch_tokens", "workers")}
    for name, value in batching.items():
        if value < 1:
            raise UserError(f"{name}: must be at least 1, but is {value}")
    mode = options.pop("mode")
    check_options(mode, **options)
    load = partial(
        JanusModel.from_pretrained,
        folder,
        getattr(torch, dtype) if dtype else None,
        quantize=quantize,
    )
    model = load()
    start = time.monotonic()
    lines = generate_lines(model, source, target, load=load, **batching, mode=mode, **options)
    seconds = time.monotonic() - start
    print(
        f"{lines} sentences in {seconds:.1f} s, {lines / seconds:.1f} sentences/s", file=sys.stderr
    )
    if report:
        numbers = {
            "mode": mode,
            "sentences": lines,
            "seconds": seconds,
            "sentences_per_s": lines / seconds,
        }
        Path(report).write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    entry_point(main)
