"""The tables at the end of the demo: losses at start and end, quality and speed of both decoders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from janus_pt.tasks.outputs import pair_up
from janus_pt.tasks.overlap import rouge
from janus_pt.train.report.metrics_file import read_metrics
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import read_lines

STREAMS = ("ar", "nar", "aux")


@dataclass(frozen=True)
class Decoding:
    """A row of the table: its name, and the flags of `janus-pt generate`."""

    name: str
    flags: tuple[str, ...]


DECODINGS = {
    "ar": Decoding("AR, beam 4", ("--mode", "ar", "--num-beams", "4")),
    "nar": Decoding(
        "NAR, 10 passes, 7 lengths",
        ("--mode", "nar", "--iterations", "10", "--length-beam", "7"),
    ),
    "nar_fast": Decoding(
        "NAR, 4 passes, 1 length", ("--mode", "nar", "--iterations", "4", "--length-beam", "1")
    ),
}
"""Ending of the output's file -> how it is decoded."""
SAMPLES = 6
"""Outputs shown beside their reference."""


def demo_table(folder: Path, pretrained: Path, finetuned: Path) -> None:
    """Print the tables of a finished demo.

    Args:
        folder: corpus and outputs.
        pretrained, finetuned: the run folders.
    """
    rows = [*loss_rows("pretraining", pretrained), *loss_rows("fine-tuning", finetuned)]
    loss_headers = ("validation loss (nats per token)", "", "start", "end")
    print("\n" + format_table(rows, loss_headers, align="llr"))
    sources = read_lines(folder / "text/pairs.test.source")
    references = read_lines(folder / "text/pairs.test.target")
    outputs = {name: read_lines(folder / f"test.{name}") for name in DECODINGS}
    rows = [["copy the first words", rouge_l(copy_baseline(sources, references), references), ""]]
    for name, decoding in DECODINGS.items():
        speed = json.loads((folder / f"test.{name}.json").read_text())["sentences_per_s"]
        rows.append([decoding.name, rouge_l(outputs[name], references), f"{speed:.1f}"])
    headers = (f"test set, {len(references)} pairs", "ROUGE-L", "sentences/s")
    print("\n" + format_table(rows, headers, align="lr") + "\n")
    print_samples(references, outputs)
    print(f"curves: {pretrained}/loss.png, {finetuned}/loss.png\nmodel: {finetuned}/export")
    print("MLflow: mlflow ui --backend-store-uri sqlite:///runs/mlflow.db")


def loss_rows(name: str, run: Path) -> list[list[str]]:
    """Each stream's loss in the first and in the last validation of a run."""
    records = read_metrics(run / "metrics.jsonl")
    validations = [record for record in records if "valid/loss/total" in record]
    rows = []
    for stream in STREAMS:
        first = validations[0][f"valid/loss/{stream}"]
        last = validations[-1][f"valid/loss/{stream}"]
        rows.append([name, stream.upper(), f"{first:.3f}", f"{last:.3f}"])
    return rows


def copy_baseline(sources: list[str], references: list[str]) -> list[str]:
    """As many first words of each source as references have on average."""
    words = round(sum(len(reference.split()) for reference in references) / len(references))
    return [" ".join(source.split()[:words]) for source in sources]


def rouge_l(predictions: list[str], references: list[str]) -> str:
    """ROUGE-L F1 as text, 0 to 100."""
    scores = rouge(pair_up(predictions, [references]))
    return f"{scores.values['rougeL']:.2f}"


def print_samples(references: list[str], outputs: dict[str, list[str]]) -> None:
    """Print some references, spread over the test set, with their outputs."""
    step = max(1, len(references) // SAMPLES)
    for index in range(0, len(references), step):
        rows = [
            ["reference", references[index]],
            ["AR", outputs["ar"][index]],
            ["NAR", outputs["nar"][index]],
        ]
        print(format_table(rows, align="l") + "\n")
