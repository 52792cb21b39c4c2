"""The report of a comparison: `claims.json` with all numbers, a page and Markdown of it, MLflow."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from janus_pt.claims.curves import read_curves
from janus_pt.claims.data import Data
from janus_pt.claims.decode import read_row
from janus_pt.claims.page import render
from janus_pt.claims.plan import Cell
from janus_pt.claims.plots import plot_curves, plot_speeds
from janus_pt.claims.rows import ComparisonRow, collect_rows
from janus_pt.claims.samples import read_samples
from janus_pt.claims.speed import Speed
from janus_pt.claims.tracking import track_report
from janus_pt.claims.ways import GREEDY
from janus_pt.tasks.metrics import compared_metric
from janus_pt.train.report.metrics_file import read_metrics
from janus_pt.utils.files import write_atomically
from janus_pt.utils.tables import format_table

NONE = "-"
"""An empty cell of a table."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a training took and reached.

    Attributes:
        changes: `dotted.key=value`, how it differs from the others'.
        tokens_per_s: median over the run's reports; None if it made none.
        valid: `valid/loss/STREAM` -> its last value.
    """

    cell: str
    objective: str
    changes: list[str]
    updates: int
    tokens_per_s: float | None
    valid: dict[str, float]


def write_report(
    output: Path, cells: Sequence[Cell], data: Data, speed: Speed, baseline: str | None
) -> None:
    """Compare the cells and write `claims.json`, `report.html`, `report.md` and two pictures.

    The scores and these files are logged to MLflow, and the main table is printed.
    """
    rows = collect_rows(cells, data, speed, baseline)
    trainings = [summarize_training(cell) for cell in cells]
    content = claims_content(cells, rows, trainings, data, speed)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(output / "claims.json", text)
    # Of the file's text: the page can be made again from it, and from nothing else.
    write_atomically(output / "report.html", render(json.loads(text)))
    paragraphs = markdown(cells, rows, trainings, data, content)
    write_atomically(output / "report.md", "\n\n".join(paragraphs) + "\n")
    plot_curves(cells, output / "curves.png")
    plot_speeds(rows, output / "speeds.png")
    # Last, since it uploads the files written above.
    track_report(output, cells)
    print(comparison_table(rows))
    print(f"\n{output / 'report.html'}")


def claims_content(
    cells: Sequence[Cell],
    rows: Sequence[ComparisonRow],
    trainings: Sequence[TrainingSummary],
    data: Data,
    speed: Speed,
) -> dict[str, Any]:
    """What `claims.json` holds: every number, curve and sample of the page."""
    systems = dict.fromkeys(cell.system.name for cell in cells)
    # Ways of one task have the same metrics: each signature once.
    signatures: dict[str, str] = {}
    for cell in cells:
        for way in cell.system.ways:
            signatures.update(read_row(cell.folder, way)["signatures"])
    metric = compared_metric(data.row.metrics)
    first_seed = [cell for cell in cells if cell.seed == cells[0].seed]
    return {
        "title": f"{data.task}: {', '.join(systems)}",
        "setting": _setting(cells, data),
        "metric": metric,
        "explanation": _explanation(metric, speed),
        "sizes": speed_sizes(rows),
        "rows": [asdict(row) for row in rows],
        "trainings": [asdict(training) for training in trainings],
        "curves": [asdict(curve) for curve in read_curves(cells)],
        "samples": read_samples(first_seed, data),
        "signatures": signatures,
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}.",
    }


def summarize_training(cell: Cell) -> TrainingSummary:
    """Read a run's metrics file."""
    records = read_metrics(cell.run / "metrics.jsonl")
    speeds = [record["tokens_per_s"] for record in records if "tokens_per_s" in record]
    valid = {}
    # Later records overwrite earlier ones: the last validation stays.
    for record in records:
        losses = {key: loss for key, loss in record.items() if key.startswith("valid/loss/")}
        valid.update(losses)
    return TrainingSummary(
        cell=cell.name,
        objective=cell.system.objective,
        changes=list(cell.system.changes),
        updates=cell.config.run.max_steps,
        # The median: the first reports hold the start, and others a busy machine.
        tokens_per_s=median(speeds) if speeds else None,
        valid=valid,
    )


def markdown(
    cells: Sequence[Cell],
    rows: Sequence[ComparisonRow],
    trainings: Sequence[TrainingSummary],
    data: Data,
    content: Mapping[str, Any],
) -> Iterator[str]:
    """The paragraphs of the report; `content` is what `claims.json` holds."""
    yield f"# {content['title']}"
    yield content["setting"]
    yield comparison_table(rows)
    yield content["explanation"]
    signatures = content["signatures"].items()
    yield "\n".join(f"- {name}: `{signature}`" for name, signature in signatures)
    yield "## Training"
    yield training_table(trainings)
    yield "![Validation losses](curves.png)"
    yield "![Quality against speed](speeds.png)"
    yield content["machine"]


def _explanation(metric: str, speed: Speed) -> str:
    """What the columns of the main table are."""
    return (
        f"Means over seeds, in brackets each seed. ±: half the 95 % bootstrap interval of {metric}. "
        f"Δ and p: {metric} against the system named, same seed, paired bootstrap (1,000 samples, "
        "as sacrebleu's); p is the largest of the seeds'. Speed: sentences/s, the first seed's "
        f"model, {speed.sentences} sentences, best of {speed.repeats}, all ways by turns on "
        f"{speed.device}, encoder and tokenising counted, float32; x: times greedy search of the "
        "first system that has it."
    )


def _setting(cells: Sequence[Cell], data: Data) -> str:
    """What all systems share, as a sentence or two."""
    config = cells[0].config
    model = config.model
    seeds = sorted({cell.seed for cell in cells})
    kept = "best validation" if config.run.patience else "last checkpoint"
    layers = f"{model.encoder_layers}+{model.decoder_layers} layers"
    return (
        f"{len(data.test.sources):,} test sentences ({data.splits[2]}). "
        f"Model: {layers}, {model.hidden_size}/{model.ffn_hidden_size}, "
        f"{model.num_attention_heads} heads, vocabulary {model.vocab_size:,}. "
        f"{config.run.max_steps:,} updates of {config.data.global_batch_size:,} "
        f"{config.data.batch_unit}, {config.precision.dtype}; "
        f"seeds {', '.join(map(str, seeds))}. Raw data, {kept}, no averaging."
    )


def speed_sizes(rows: Sequence[ComparisonRow]) -> list[str]:
    """The batch sizes that were timed."""
    timed = [row for row in rows if row.speeds]
    return list(timed[0].speeds) if timed else []


def comparison_table(rows: Sequence[ComparisonRow]) -> str:
    """The rows in Markdown."""
    metrics = list(rows[0].values)
    sizes = speed_sizes(rows)
    timed = [row for row in rows if row.speeds]
    # The first system that has it, usually `ar`: one measure for all speeds.
    greedy = [row for row in timed if row.way == GREEDY]
    greedy_speeds = greedy[0].speeds if greedy else {}
    headers = ["system", "decoding", *metrics, "±", "Δ", "p", "against", "passes"]
    headers += [f"batch {size}" for size in sizes]
    lines = []
    for row in rows:
        line = [row.system, _way_text(row)]
        line += [_over_seeds(row.values[name]) for name in metrics]
        line.append(f"{mean(row.interval):.1f}")
        line += _difference_texts(row)
        line.append(f"{row.passes:.1f}")
        line += [_speed_text(row.speeds[size], greedy_speeds.get(size)) for size in sizes]
        lines.append(line)
    return format_table(lines, headers, align="l", markdown=True)


def training_table(trainings: Sequence[TrainingSummary]) -> str:
    """What the trainings took and reached, in Markdown."""
    headers = ["cell", "differs in", "target tokens/s", "validation loss AR", "NAR"]
    lines = []
    for training in trainings:
        ar_loss, nar_loss = (training.valid.get(f"valid/loss/{stream}") for stream in ("ar", "nar"))
        numbers = [training.tokens_per_s, ar_loss, nar_loss]
        texts = [NONE if number is None else f"{number:.3f}" for number in numbers]
        lines.append([training.cell, ", ".join(training.changes) or NONE, *texts])
    return format_table(lines, headers, align="l", markdown=True)


def _way_text(row: ComparisonRow) -> str:
    if row.as_greedy is None:
        return row.way
    return f"{row.way} ({row.as_greedy:.1%} as greedy)"


def _difference_texts(row: ComparisonRow) -> list[str]:
    """Difference, p-value, and the system compared with."""
    if not row.difference:
        return [NONE] * 3
    # The seed that says least is the one to report.
    return [f"{mean(row.difference):+.2f}", f"{max(row.p_value):.3f}", row.against]


def _speed_text(rate: float, greedy_rate: float | None) -> str:
    if greedy_rate is None:
        return f"{rate:.1f}"
    return f"{rate:.1f} ({rate / greedy_rate:.2f}x)"


def _over_seeds(values: Sequence[float]) -> str:
    """The mean, and each seed's value in brackets if there are several."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"{mean(values):.2f} ({each})"
