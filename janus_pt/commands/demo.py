"""The whole system on one small machine: text, tokenizers, shards, two trainings, decoding, a table.

  janus-pt demo
  janus-pt demo --short --output demo --runs runs

A model is pretrained for a moment on real text, by two processes. Another learns from nothing, in
minutes, to say dates, times and amounts as they are spoken; it is decoded in every way.
Every command that runs is printed first; each can be run by hand. A second call goes on where the
first one stopped. No GPU is needed, and nothing is downloaded: the text is the documentation that is
installed with Python. With --long the pretrained model is trained longer, and fine-tuned to write a
docstring's first line. Needs the extra: pip install 'janus_pt[demo]'
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from janus_pt.commands.demo_docstrings import run_long
from janus_pt.commands.demo_losses import loss_table
from janus_pt.commands.demo_spoken import (
    build_pairs,
    print_next_steps,
    show_model,
    train_on_pairs,
)
from janus_pt.commands.demo_steps import build_text, pretrain
from janus_pt.utils.extras import require


@dataclass(frozen=True)
class Size:
    """How long the demo is.

    Attributes:
        megabytes: of text.
        pretraining: steps.
        pairs: for training.
        training: steps on the pairs.
        tested: sentences of the test set that are decoded.
        timed: sentences of them that are timed.
    """

    megabytes: float
    pretraining: int
    pairs: int
    training: int
    tested: int
    timed: int


NORMAL = Size(megabytes=2, pretraining=40, pairs=30_000, training=500, tested=500, timed=40)
SHORT = Size(megabytes=1, pretraining=6, pairs=2_000, training=10, tested=20, timed=4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `demo`."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for the corpus and the outputs"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder for the run folders"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--short", action="store_true", help="a few steps only: shows that it works, learns little"
    )
    length.add_argument(
        "--long", action="store_true", help="pretraining and fine-tuning on docstrings instead"
    )


def run(args: argparse.Namespace) -> None:
    """Run the demo in `--output` and `--runs`."""
    # For the tables at the end; a missing package must not be found only then.
    for package in ("num2words", "jiwer", "rouge_score"):
        require(package, "demo")
    start = time.monotonic()
    model = None
    if args.long:
        run_long(args.output, args.runs)
    else:
        model = run_demo(args.output, args.runs, SHORT if args.short else NORMAL)
    print(f"\nthe demo took {(time.monotonic() - start) / 60:.1f} minutes")
    if model is not None:
        print_next_steps(model)


def run_demo(folder: Path, runs: Path, size: Size) -> Path:
    """Pretrain on text, train on pairs, decode, and print the tables; returns the model's folder."""
    pretrained = runs / "demo_pretrain"
    trained = runs / "demo_spoken"
    build_text(folder, size.megabytes)
    pretrain(folder, pretrained, _steps(size.pretraining))
    tokenizers = build_pairs(folder, size.pairs)
    train_on_pairs(folder, trained, tokenizers, _steps(size.training))
    print("\n" + loss_table({"text, pretraining": pretrained, "spoken forms": trained}))
    print(f"curves: {pretrained}/loss.png, {trained}/loss.png")
    print("MLflow: mlflow ui --backend-store-uri sqlite:///runs/mlflow.db")
    model = trained / "export"
    show_model(folder, model, size.tested, size.timed)
    return model


def _steps(steps: int) -> list[str]:
    """The changes for a training of so many steps, validated in the middle and at the end."""
    return [
        f"run.max_steps={steps}",
        f"run.eval_every={steps // 2}",
        f"checkpoint.every={steps}",
        f"schedule.warmup_steps={max(1, steps // 10)}",
    ]
