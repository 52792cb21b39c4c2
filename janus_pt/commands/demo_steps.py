"""What the demo and its long form share: commands, the text, corpora, trainings."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RANKS = 2
MAX_TOKENS = 62
"""Tokens of a pretraining block: 64 positions with bos and eos."""


def call(*arguments: str) -> None:
    """Print a `janus-pt` command and run it; a failure ends the demo with its exit code."""
    print(f"\n$ janus-pt {shlex.join(arguments)}", flush=True)
    # Without a GPU, or with fewer than ranks, the demo works as well.
    environment = {"DS_ACCELERATOR": "cpu", **os.environ}
    done = subprocess.run([sys.executable, "-m", "janus_pt", *arguments], env=environment)
    if done.returncode:
        raise SystemExit(done.returncode)


def build_text(folder: Path, max_megabytes: float | None = None) -> Path:
    """Gather text, train its tokenizer and build the two corpora of the pretraining.

    Args:
        max_megabytes: of text; None: all there is.

    Returns:
        The tokenizer's file.
    """
    text = folder / "text"
    tokenizer = folder / "tokenizer.model"
    size = [] if max_megabytes is None else ["--max-megabytes", f"{max_megabytes:g}"]
    call("prep", "demo-corpus", "--output", str(text), *size)
    train_tokenizer(
        text / "text.jsonl", tokenizer, "--vocab-size", "4000", "--sample-bytes", "4000000"
    )
    for name, source in (("corpus", "text.jsonl"), ("corpus_valid", "text.valid.jsonl")):
        inputs = ["--input", str(text / source)]
        build_corpus(folder / name, tokenizer, inputs, MAX_TOKENS)
    return tokenizer


def train_tokenizer(text: Path, output: Path, *options: str) -> None:
    """Train a tokenizer on a text, unless it is there."""
    if not output.exists():
        call("prep", "train-tokenizer", "--input", str(text), "--output", str(output), *options)


def build_corpus(output: Path, tokenizer: Path, inputs: Sequence[str], max_tokens: int) -> None:
    """Tokenise texts and write them as shards."""
    command = ["prep", "build-shards", "--tokenizer", str(tokenizer), *inputs]
    command += ["--max-tokens", str(max_tokens), "--output", str(output)]
    call(*command)


def pretrain(folder: Path, run: Path, changes: Sequence[str]) -> None:
    """Pretrain on the text's corpora."""
    corpora = [
        f"run.output_dir={run}",
        f"data.train.0.path={folder}/corpus",
        f"data.valid={folder}/corpus_valid",
    ]
    train("pretrain", "janus_tiny", [*corpora, *changes])


def train(command: str, config: str, changes: Sequence[str]) -> None:
    """Train on two processes; goes on if it was stopped."""
    arguments = [command, "--num-gpus", str(RANKS), "--config", config, "--resume", "auto"]
    for change in changes:
        arguments += ["--set", change]
    call(*arguments)
