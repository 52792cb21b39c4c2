"""Sequence-level distillation: a teacher's outputs for a training set, as a corpus for a student.

    janus-pt distill --model runs/ar/export --source train.en --output distilled --mode ar --num-beams 5
    janus-pt prep build-task --task nmt --data distilled --splits train --tokenizer … --output corpora

Writes train.src and train.tgt, line by line, a source once for each of its --n-best outputs. The
same command goes on where it was killed; several processes, on any machines that see the folder,
share the work with --shard 1/4 … 4/4.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path

import torch

from janus_pt.generate.modes import check_options
from janus_pt.inference.batching import BATCH_SIZE, MAX_BATCH_TOKENS
from janus_pt.inference.cli import add_decoding_flags
from janus_pt.inference.janus_model import JanusModel
from janus_pt.tasks.distill import DistillationRequest, distill, n_best_options
from janus_pt.utils.errors import UserError

OWN_FLAGS = (
    "model",
    "source",
    "output",
    "name",
    "n_best",
    "shard",
    "dtype",
    "batch_size",
    "max_batch_tokens",
    "workers",
)
"""Flags of this launcher; all others are options of the mode."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill`; of the modes' options only those that are given."""
    add = parser.add_argument
    add("--model", required=True, help="folder of the teacher")
    add("--source", required=True, metavar="FILE", help="the training set's sources, one a line")
    add("--output", required=True, type=Path, metavar="FOLDER", help="gets NAME.src and NAME.tgt")
    add("--name", default="train", help="(default: %(default)s)")
    add("--n-best", type=int, default=1, help="outputs for each source (default: %(default)s)")
    add("--shard", default="1/1", metavar="I/N", help="do the I-th part of N (default: all)")
    add("--dtype", choices=["float32", "bfloat16"], help="default: as the weights are stored")
    add("--batch-size", type=int, default=BATCH_SIZE, help="lines decoded together at most")
    add("--max-batch-tokens", type=int, default=MAX_BATCH_TOKENS, help="source tokens in a batch")
    add("--workers", type=int, default=1, help="processes that decode; they share the cores")
    add_decoding_flags(parser)


def parse_shard(text: str) -> tuple[int, int]:
    """I and N of `I/N`."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: write it as I/N, as in 1/4, with I from 1 to N")
    return int(match[1]), int(match[2])


def run(args: argparse.Namespace) -> None:
    """Decode what is missing of the shard, and say whether the corpus is complete."""
    shard = parse_shard(args.shard)
    for name in ("n_best", "workers"):
        value = getattr(args, name)
        if value < 1:
            raise UserError(f"{name}: must be at least 1, but is {value}")
    options = {name: value for name, value in vars(args).items() if name not in OWN_FLAGS}
    # Before the model is loaded, which may take minutes.
    mode_options = {**options, **n_best_options(args.n_best)}
    mode = mode_options.pop("mode")
    check_options(mode, **mode_options)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    load = partial(JanusModel.from_pretrained, args.model, dtype)
    complete = distill(
        DistillationRequest(args.model, args.source, options, args.n_best, args.dtype),
        load(),
        args.output,
        args.name,
        shard,
        args.workers,
        load,
        batch_size=args.batch_size,
        max_batch_tokens=args.max_batch_tokens,
    )
    if complete:
        print(f"{args.output / args.name}.src, {args.output / args.name}.tgt")
    else:
        print("this shard is done; others are not yet")
