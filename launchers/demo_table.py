"""The table at the end of the demo: losses at start and end, quality and speed of both ways to decode."""

from __future__ import annotations

import json
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

from janus_pt.train.report.metrics_file import read_metrics
from janus_pt.utils.text_files import read_lines

STREAMS = ("ar", "nar", "aux")
DECODINGS = {
    "ar": ("AR, beam 4", ["--mode", "ar", "--num-beams", "4"]),
    "nar": (
        "NAR, 10 passes, 7 lengths",
        ["--mode", "nar", "--iterations", "10", "--length-beam", "7"],
    ),
    "nar_fast": (
        "NAR, 4 passes, 1 length",
        ["--mode", "nar", "--iterations", "4", "--length-beam", "1"],
    ),
}
"""What is decoded: a name in the table, and the options of launchers/generate.py."""
SAMPLES = 6
"""Outputs shown beside their reference."""


def demo_table(folder: Path, pretrained: Path, finetuned: Path) -> None:
    """Print the table of a finished demo whose corpus and outputs are in `folder`."""
    print("\nvalidation loss (nats per token)         start      end")
    for name, run in (("pretraining", pretrained), ("fine-tuning", finetuned)):
        validated = [
            record for record in read_metrics(run / "metrics.jsonl") if "valid/loss/total" in record
        ]
        for stream in STREAMS:
            first, last = (
                record[f"valid/loss/{stream}"] for record in (validated[0], validated[-1])
            )
            print(f"  {name:<14}{stream.upper():<22}{first:>8.3f} {last:>8.3f}")
    sources, references = (
        read_lines(folder / "text/pairs.test.source"),
        read_lines(folder / "text/pairs.test.target"),
    )
    outputs = {name: read_lines(folder / f"test.{name}") for name in DECODINGS}
    print(f"\ntest set, {len(references)} pairs                  ROUGE-L  sentences/s")
    print(
        f"  copy the first words                {_rouge_l(copy_baseline(sources, references), references):>8.2f}"
    )
    for name, (what, _) in DECODINGS.items():
        speed = json.loads((folder / f"test.{name}.json").read_text())["sentences_per_s"]
        print(f"  {what:<36}{_rouge_l(outputs[name], references):>8.2f} {speed:>12.1f}")
    print()
    for row in range(0, len(references), max(1, len(references) // SAMPLES)):
        for what, lines in (
            ("reference", references),
            ("AR", outputs["ar"]),
            ("NAR", outputs["nar"]),
        ):
            print(f"  {what:<11}{lines[row]}")
        print()
    print(f"curves: {pretrained}/loss.png, {finetuned}/loss.png\nmodel: {finetuned}/export")
    print("MLflow: .venv/bin/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db")


def copy_baseline(sources: list[str], references: list[str]) -> list[str]:
    """As many first words of each source as references have on average."""
    words = round(sum(len(reference.split()) for reference in references) / len(references))
    return [" ".join(source.split()[:words]) for source in sources]


def _rouge_l(predictions: list[str], references: list[str]) -> float:
    """Mean ROUGE-L F1 (rouge-score, stemmed), 0 to 100."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        scorer.score(r, p)["rougeL"].fmeasure for r, p in zip(references, predictions, strict=True)
    ]
    return 100 * sum(scores) / len(scores)
