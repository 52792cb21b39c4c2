"""The whole system on one small machine: corpus, tokenizer, shards, pretraining, fine-tuning, decoding, a table.

  janus-pt demo
  janus-pt demo --short --output demo --runs runs

Every command it runs is printed first; each can be run by hand. A second call goes on where the
first one stopped. No GPU is needed, and nothing is downloaded: the text is the documentation that is
installed with Python. Needs the extra: pip install 'janus_pt[tasks]'
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from janus_pt.commands.demo_table import DECODINGS, demo_table
from janus_pt.utils.extras import require

RANKS = 2
MAX_TOKENS = 62
"""Tokens of a pretraining block: 64 positions with bos and eos."""
MAX_PAIR_TOKENS = 254
"""Tokens of each side of a pair: 256 positions with bos and eos."""


def call(*arguments: str) -> None:
    """Print a `janus-pt` command and run it; a failure ends the demo with its exit code."""
    print(f"\n$ janus-pt {shlex.join(arguments)}", flush=True)
    # Without a GPU, or with fewer than ranks, the demo works as well.
    environment = {"DS_ACCELERATOR": "cpu", **os.environ}
    done = subprocess.run([sys.executable, "-m", "janus_pt", *arguments], env=environment)
    if done.returncode:
        raise SystemExit(done.returncode)


def build(folder: Path, short: bool) -> None:
    """Make the text, the tokenizer and the four corpora."""
    text = folder / "text"
    tokenizer = folder / "tokenizer.model"
    size = ["--max-megabytes", "4"] if short else []
    call("prep", "demo-corpus", "--output", str(text), *size)
    if not tokenizer.exists():
        train_tokenizer(text / "text.jsonl", tokenizer)
    for name, source in (("corpus", "text.jsonl"), ("corpus_valid", "text.valid.jsonl")):
        inputs = ["--input", str(text / source)]
        build_corpus(folder / name, tokenizer, inputs, MAX_TOKENS)
    for split in ("train", "valid"):
        source, target = (str(text / f"pairs.{split}.{side}") for side in ("source", "target"))
        inputs = ["--source", source, "--target", target]
        build_corpus(folder / f"pairs_{split}", tokenizer, inputs, MAX_PAIR_TOKENS)


def train_tokenizer(text: Path, output: Path) -> None:
    """Train a small vocabulary on a part of the text."""
    command = ["prep", "train-tokenizer", "--input", str(text)]
    command += ["--vocab-size", "4000", "--sample-bytes", "4000000", "--output", str(output)]
    call(*command)


def build_corpus(output: Path, tokenizer: Path, inputs: list[str], max_tokens: int) -> None:
    """Tokenise texts and write them as shards."""
    command = ["prep", "build-shards", "--tokenizer", str(tokenizer), *inputs]
    command += ["--max-tokens", str(max_tokens), "--output", str(output)]
    call(*command)


def train(command: str, config: str, changes: list[str]) -> None:
    """Train on two processes; goes on if it was stopped."""
    arguments = [command, "--num-gpus", str(RANKS), "--config", config, "--resume", "auto"]
    for change in changes:
        arguments += ["--set", change]
    call(*arguments)


def decode(folder: Path, model: Path) -> None:
    """Decode the test set in every way of the table."""
    for name, decoding in DECODINGS.items():
        command = ["generate", "--model", str(model), *decoding.flags]
        command += ["--input", str(folder / "text" / "pairs.test.source")]
        command += ["--output", str(folder / f"test.{name}")]
        command += ["--json", str(folder / f"test.{name}.json")]
        call(*command)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `demo`."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for the corpus and the outputs"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder for the run folders"
    )
    parser.add_argument(
        "--short", action="store_true", help="a few steps only: shows that it works, learns little"
    )


def run(args: argparse.Namespace) -> None:
    """Run the demo in `--output` and `--runs`."""
    # For the table at the end; a missing package must not be found only then.
    require("rouge_score", "tasks")
    start = time.monotonic()
    folder = args.output
    pretrained = args.runs / "demo_pretrain"
    finetuned = args.runs / "demo_finetune"
    steps = []
    if args.short:
        steps = ["run.max_steps=40", "run.eval_every=20", "checkpoint.every=20"]
    build(folder, args.short)
    pretraining = [
        f"run.output_dir={pretrained}",
        f"data.train.0.path={folder}/corpus",
        f"data.valid={folder}/corpus_valid",
    ]
    train("pretrain", "janus_tiny", pretraining + steps)
    finetuning = [
        f"run.output_dir={finetuned}",
        f"run.init_from={pretrained}/export",
        f"data.train.0.path={folder}/pairs_train",
        f"data.valid={folder}/pairs_valid",
    ]
    train("finetune", "summary_tiny", finetuning + steps)
    decode(folder, finetuned / "export")
    demo_table(folder, pretrained, finetuned)
    print(f"\nthe demo took {(time.monotonic() - start) / 60:.1f} minutes")
