"""The report of a comparison: a table, the claims in numbers, JSON, curves, and the same in MLflow."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median

import torch

from janus_pt.claims.cells import Json, baseline_of, compare
from janus_pt.claims.data import Data
from janus_pt.claims.decode import read_predictions, read_row
from janus_pt.claims.plan import Cell
from janus_pt.claims.plots import plot_curves, plot_speeds
from janus_pt.claims.tracking import track_report
from janus_pt.train.report.metrics_file import read_metrics
from janus_pt.utils.files import write_atomically

GREEDY = "AR greedy"


@dataclass
class Row:
    """A system in one way of decoding, over its seeds.

    values: metric -> one value a seed; interval: half the width of the bootstrap's 95 % interval of BLEU, a seed each;
    against: what it is compared with, of the same seed; difference, p_value: of BLEU, a seed each; passes: mean decoder
    passes of a sentence; speeds: sentences/s by batch size; as_greedy: share of outputs equal to greedy search's.
    """

    system: str
    way: str
    options: Json
    values: dict[str, list[float]] = field(default_factory=dict)
    interval: list[float] = field(default_factory=list)
    against: str = ""
    difference: list[float] = field(default_factory=list)
    p_value: list[float] = field(default_factory=list)
    passes: float = 0.0
    speeds: dict[str, float] = field(default_factory=dict)
    as_greedy: float | None = None


def write_report(
    output: Path, cells: Sequence[Cell], data: Data, speed: Json, baseline: str | None
) -> None:
    """Compare the cells, and write `report.md`, `report.json`, `curves.png` and `speeds.png`; log them to MLflow."""
    rows = collect(cells, data, speed, baseline)
    signatures = {
        k: v
        for cell in cells
        for way in cell.system.ways
        for k, v in read_row(cell.folder, way)["signatures"].items()
    }
    content = {
        "rows": [asdict(row) for row in rows],
        "training": [training(cell) for cell in cells],
        "speed": {name: value for name, value in speed.items() if name not in ("speeds", "of")},
        "signatures": signatures,
    }
    write_atomically(output / "report.json", json.dumps(content, indent=1, ensure_ascii=False))
    write_atomically(output / "report.md", "\n".join(markdown(cells, rows, data, content)) + "\n")
    plot_curves(cells, output / "curves.png")
    plot_speeds(rows, output / "speeds.png")
    track_report(output, cells)
    print("\n".join(table(rows)))
    print(f"\n{output / 'report.md'}")


def collect(cells: Sequence[Cell], data: Data, speed: Json, baseline: str | None) -> list[Row]:
    """The rows of all systems and ways."""
    rows: dict[tuple[str, str], Row] = {}
    for cell in cells:
        for way, options in cell.system.ways.items():
            found = read_row(cell.folder, way)
            row = rows.setdefault((cell.system.name, way), Row(cell.system.name, way, options))
            for name, value in found["metrics"].items():
                row.values.setdefault(name, []).append(value)
            other = baseline_of(cell, way, cells, baseline)
            compared = compare(cell, way, other, data)
            row.interval.append(compared["bleu"]["system_ci"])
            if other:
                row.against = f"{other[0].system.name}, {other[1]}"
                row.difference.append(compared["bleu"]["difference"])
                row.p_value.append(compared["bleu"]["p_value"])
            row.passes += found["decoder_passes"] / sum(c.system is cell.system for c in cells)
            row.speeds |= speed["speeds"].get(f"{cell.name}: {way}", {})
            if way == "speculative":
                row.as_greedy = share_alike(cell, way, GREEDY)
    return list(rows.values())


def share_alike(cell: Cell, way: str, other: str) -> float:
    """Share of the test set for which two ways write the same."""
    first, second = (read_predictions(cell.folder, w) for w in (way, other))
    return mean(a == b for a, b in zip(first, second, strict=True))


def training(cell: Cell) -> Json:
    """What a training took: updates, target tokens, tokens per second, and the last validation losses."""
    records = read_metrics(cell.run / "metrics.jsonl")
    last = {
        key: value
        for record in records
        for key, value in record.items()
        if key.startswith("valid/loss/")
    }
    speeds = [record["tokens_per_s"] for record in records if "tokens_per_s" in record]
    return {
        "cell": cell.name,
        "objective": cell.system.objective,
        "changes": list(cell.system.changes),
        "updates": cell.config.run.max_steps,
        "tokens_per_s": median(speeds) if speeds else None,
        "valid": last,
    }


def markdown(
    cells: Sequence[Cell], rows: Sequence[Row], data: Data, content: Json
) -> Iterator[str]:
    """The lines of the report."""
    config, speed = cells[0].config, content["speed"]
    model, test = config.model, data.test
    seeds = sorted({cell.seed for cell in cells})
    yield f"# {data.task}: {', '.join(dict.fromkeys(cell.system.name for cell in cells))}\n"
    shape = f"{model.encoder_layers}+{model.decoder_layers} layers, {model.hidden_size}/{model.ffn_hidden_size}"
    yield (
        f"{len(test.sources):,} test sentences ({data.splits[2]}). Model: {shape}, {model.num_attention_heads} heads, "
        f"vocabulary {model.vocab_size:,}. {config.run.max_steps:,} updates of {config.data.global_batch_size:,} "
        f"{config.data.batch_unit}, {config.precision.dtype}; seeds {', '.join(map(str, seeds))}. Raw data, last "
        "checkpoint, no averaging.\n"
    )
    yield from table(rows)
    yield (
        "\nMeans over seeds, in brackets each seed. ±: half the 95 % bootstrap interval of BLEU. Δ and p: BLEU against "
        "the system named, same seed, sacrebleu's paired bootstrap (1,000 samples); p is the largest of the seeds'. "
        f"Speed: sentences/s, the first seed's model, {speed['sentences']} sentences, best of {speed['repeats']}, all "
        f"ways by turns on {speed['device']}, encoder and tokenising counted, float32; x: times greedy search of the "
        "first system that has it.\n"
    )
    yield from (f"- {name}: `{signature}`" for name, signature in content["signatures"].items())
    yield "\n## Training\n\n| cell | differs in | target tokens/s | validation loss AR | NAR |\n|---|---|---|---|---|"
    for found in content["training"]:
        losses = [found["valid"].get(f"valid/loss/{stream}") for stream in ("ar", "nar")]
        told = " | ".join(
            "-" if value is None else f"{value:.3f}" for value in (found["tokens_per_s"], *losses)
        )
        yield f"| {found['cell']} | {', '.join(found['changes']) or '-'} | {told} |"
    yield "\n![Validation losses](curves.png)\n\n![Quality against speed](speeds.png)\n"
    yield f"{platform.processor() or platform.machine()}, torch {torch.__version__}."


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows in Markdown."""
    metrics = list(rows[0].values)
    sizes = list(next((row.speeds for row in rows if row.speeds), {}))
    base = next((row.speeds for row in rows if row.way == GREEDY and row.speeds), {})
    heads = [
        "system",
        "decoding",
        *metrics,
        "±",
        "Δ",
        "p",
        "against",
        "passes",
        *(f"batch {n}" for n in sizes),
    ]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        cells = [
            row.system,
            row.way + ("" if row.as_greedy is None else f" ({row.as_greedy:.1%} as greedy)"),
        ]
        cells += [_over_seeds(row.values[name]) for name in metrics]
        cells.append(f"{mean(row.interval):.1f}")
        compared = bool(row.difference)
        cells += (
            [f"{mean(row.difference):+.2f}", f"{max(row.p_value):.3f}", row.against]
            if compared
            else ["-"] * 3
        )
        cells.append(f"{row.passes:.1f}")
        for size in sizes:
            rate = row.speeds[size]
            cells.append(f"{rate:.1f}" + (f" ({rate / base[size]:.2f}x)" if base else ""))
        yield f"| {' | '.join(cells)} |"


def _over_seeds(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"
