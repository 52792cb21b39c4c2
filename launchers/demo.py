"""The whole system on one small machine: corpus, tokenizer, shards, pretraining, fine-tuning, decoding, a table.

    make demo

Every command it runs is printed first; each can be run by hand. A second call goes on where the
first one stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from demo_table import DECODINGS, demo_table

BIN = Path(sys.executable).parent
PYTHON = str(BIN / "python")
RANKS = 2
MAX_TOKENS = 62
"""Tokens of a pretraining block: 64 positions with bos and eos."""
MAX_PAIR_TOKENS = 254
"""Tokens of each side of a pair: 256 positions with bos and eos."""


def run(*command: str) -> None:
    """Print a command and run it; a failure ends the demo with the command's exit code."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    # The launchers' deepspeed is this environment's, activated or not.
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(command, env={**os.environ, "PATH": path})
    if done.returncode:
        raise SystemExit(done.returncode)


def build(folder: Path, short: bool) -> None:
    """Make the text, the tokenizer and the four corpora."""
    text = folder / "text"
    tokenizer = folder / "tokenizer.model"
    size = ["--max-megabytes", "4"] if short else []
    run(PYTHON, "data_prep/demo_corpus.py", "--output", str(text), *size)
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
    command = [PYTHON, "data_prep/train_tokenizer.py", "--input", str(text)]
    command += ["--vocab-size", "4000", "--sample-bytes", "4000000", "--output", str(output)]
    run(*command)


def build_corpus(output: Path, tokenizer: Path, inputs: list[str], max_tokens: int) -> None:
    """Tokenise texts and write them as shards."""
    command = [PYTHON, "data_prep/build_shards.py", "--tokenizer", str(tokenizer), *inputs]
    command += ["--max-tokens", str(max_tokens), "--output", str(output)]
    run(*command)


def train(launcher: str, config: str, changes: list[str]) -> None:
    """Train on two processes; goes on if it was stopped."""
    command = [str(BIN / "deepspeed"), "--num_accelerators", str(RANKS), f"launchers/{launcher}.py"]
    command += ["--config", config, "--resume", "auto"]
    for change in changes:
        command += ["--set", change]
    run(*command)


def decode(folder: Path, model: Path) -> None:
    """Decode the test set in every way of the table."""
    for name, decoding in DECODINGS.items():
        command = [PYTHON, "launchers/generate.py", "--model", str(model), *decoding.flags]
        command += ["--input", str(folder / "text" / "pairs.test.source")]
        command += ["--output", str(folder / f"test.{name}")]
        command += ["--json", str(folder / f"test.{name}.json")]
        run(*command)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for the corpus and the outputs"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder for the run folders"
    )
    parser.add_argument(
        "--short", action="store_true", help="a few steps only: shows that it works, learns little"
    )
    return parser.parse_args()


def main() -> None:
    """Run the demo in `--output` and `--runs`."""
    args = parse_arguments()
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
    train("pretrain", "configs/janus_tiny.json", pretraining + steps)
    finetuning = [
        f"run.output_dir={finetuned}",
        f"run.init_from={pretrained}/export",
        f"data.train.0.path={folder}/pairs_train",
        f"data.valid={folder}/pairs_valid",
    ]
    train("finetune", "configs/summary_tiny.json", finetuning + steps)
    decode(folder, finetuned / "export")
    demo_table(folder, pretrained, finetuned)
    print(f"\nthe demo took {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
