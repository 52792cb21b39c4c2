"""The whole system on one small machine: corpus, tokenizer, shards, pretraining, fine-tuning, decoding, a table.

    make demo

Every command it runs is printed first; each can be run by hand. A second call goes on where the first one stopped.
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
MAX_PAIR_TOKENS = 254


def run(*command: str) -> None:
    """Print a command and run it; a failure ends the demo with the command's exit code."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(command, env=environment)
    if done.returncode:
        raise SystemExit(done.returncode)


def build(folder: Path, short: bool) -> None:
    """Text, tokenizer and the four corpora."""
    text, tokenizer = folder / "text", str(folder / "tokenizer.model")
    run(
        PYTHON,
        "data_prep/demo_corpus.py",
        "--output",
        str(text),
        *(["--max-megabytes", "4"] if short else []),
    )
    if not Path(tokenizer).exists():
        run(PYTHON, "data_prep/train_tokenizer.py", "--input", str(text / "text.jsonl"), "--vocab-size", "4000",
            "--sample-bytes", "4000000", "--output", tokenizer)  # fmt: skip
    shards = (PYTHON, "data_prep/build_shards.py", "--tokenizer", tokenizer)
    for name, source in (("corpus", "text.jsonl"), ("corpus_valid", "text.valid.jsonl")):
        run(
            *shards,
            "--input",
            str(text / source),
            "--max-tokens",
            str(MAX_TOKENS),
            "--output",
            str(folder / name),
        )
    for split in ("train", "valid"):
        files = [
            part
            for side in ("source", "target")
            for part in (f"--{side}", str(text / f"pairs.{split}.{side}"))
        ]
        run(
            *shards,
            *files,
            "--max-tokens",
            str(MAX_PAIR_TOKENS),
            "--output",
            str(folder / f"pairs_{split}"),
        )


def train(launcher: str, config: str, *changes: str) -> None:
    """One training on two processes; it goes on if it was stopped."""
    start = (str(BIN / "deepspeed"), "--num_accelerators", str(RANKS), f"launchers/{launcher}.py")
    settings = [part for change in changes for part in ("--set", change)]
    run(*start, "--config", config, "--resume", "auto", *settings)


def decode(folder: Path, model: Path) -> None:
    """The test set in every way of the table."""
    for name, (_, options) in DECODINGS.items():
        run(PYTHON, "launchers/generate.py", "--model", str(model), *options,
            "--input", str(folder / "text" / "pairs.test.source"), "--output", str(folder / f"test.{name}"),
            "--report", str(folder / f"test.{name}.json"))  # fmt: skip


def main() -> None:
    """Run the demo in `--output` and `runs/`."""
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
    arguments = parser.parse_args()
    start, folder = time.monotonic(), arguments.output
    pretrained, finetuned = arguments.runs / "demo_pretrain", arguments.runs / "demo_finetune"
    short = (
        ["run.max_steps=40", "run.eval_every=20", "checkpoint.every=20"] if arguments.short else []
    )
    build(folder, arguments.short)
    train("pretrain", "configs/janus_tiny.json", f"run.output_dir={pretrained}", f"data.train.0.path={folder}/corpus",
          f"data.valid={folder}/corpus_valid", *short)  # fmt: skip
    train("finetune", "configs/summary_tiny.json", f"run.output_dir={finetuned}", f"run.init_from={pretrained}/export",
          f"data.train.0.path={folder}/pairs_train", f"data.valid={folder}/pairs_valid", *short)  # fmt: skip
    decode(folder, finetuned / "export")
    demo_table(folder, pretrained, finetuned)
    print(f"\nthe demo took {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
