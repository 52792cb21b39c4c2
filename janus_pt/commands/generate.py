"""Decode text with an exported model: one line in, one line out, in order.

  from file to file:  janus-pt generate --model DIR --mode ar --num-beams 4 --input in.txt --output out.txt
  in a pipe:          cat in.txt | janus-pt generate --model DIR --mode nar --iterations 10
  several processes:  janus-pt generate --model DIR --mode speculative --workers 4 --input in.txt > out.txt

The number of sentences and the rate go to standard error.
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
from janus_pt.inference.batching import BATCH_SIZE, MAX_BATCH_TOKENS, Batching
from janus_pt.inference.cli import add_decoding_flags, given_options
from janus_pt.inference.janus_model import JanusModel
from janus_pt.inference.text_files import generate_file
from janus_pt.utils.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `generate`; options of the modes appear only where they are given."""
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
        "--native",
        action="store_true",
        help="passes in C++, compiled for this CPU when they are first used",
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
        "--json",
        dest="report",
        metavar="FILE",
        help="file for the number of sentences, the seconds and the rate",
    )
    # Its old name.
    parser.add_argument("--report", help=argparse.SUPPRESS)
    add_decoding_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Decode the input; the rate goes to standard error."""
    # Everything that can be checked without the model comes before it is loaded.
    options = check_options(args.mode, **given_options(args))
    batching = Batching(args.batch_size, args.max_batch_tokens)
    if args.workers < 1:
        raise UserError(f"workers: must be at least 1, but is {args.workers}")
    dtype = getattr(torch, args.dtype) if args.dtype else None
    load = partial(
        JanusModel.from_pretrained,
        args.model,
        dtype,
        quantize=args.quantize,
        native=args.native,
    )
    model = load()
    # The clock starts here: loading the model is no part of the rate.
    start = time.monotonic()
    lines = generate_file(
        model, args.input, args.output, options, batching, args.workers, load=load
    )
    seconds = time.monotonic() - start
    rate = lines / seconds
    # Standard output may hold the decoded text.
    print(f"{lines} sentences in {seconds:.1f} s, {rate:.1f} sentences/s", file=sys.stderr)
    if args.report:
        numbers = {
            "mode": args.mode,
            "sentences": lines,
            "seconds": seconds,
            "sentences_per_s": rate,
        }
        Path(args.report).write_text(json.dumps(numbers, indent=1))
