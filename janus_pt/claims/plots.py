"""Pictures of a comparison: validation losses over updates, quality against speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from janus_pt.claims.plan import Cell
from janus_pt.claims.rows import ComparisonRow
from janus_pt.train.report.metrics_file import read_metrics
from janus_pt.utils.extras import require

STREAM_NAMES = {"ar": "AR", "nar": "NAR"}


def plot_curves(cells: Sequence[Cell], png_path: Path) -> None:
    """Draw the validation loss of the AR and of the NAR stream over updates.

    Each system has a colour, each seed a line.
    """
    figure, panels = _figure(len(STREAM_NAMES))
    systems = list(dict.fromkeys(cell.system.name for cell in cells))
    for panel, (stream, stream_name) in zip(panels, STREAM_NAMES.items(), strict=True):
        for cell in cells:
            key = f"valid/loss/{stream}"
            records = [r for r in read_metrics(cell.run / "metrics.jsonl") if key in r]
            # An objective without this stream has no such loss.
            if not records:
                continue
            steps = [record["step"] for record in records]
            losses = [record[key] for record in records]
            # One entry in the legend for all seeds of a system.
            is_first_seed = cell.seed == cells[0].seed
            label = cell.system.name if is_first_seed else None
            colour = f"C{systems.index(cell.system.name)}"
            panel.plot(steps, losses, color=colour, label=label)
        panel.set_title(f"{stream_name}, validation")
        panel.set_xlabel("update")
        panel.set_ylabel("cross-entropy, nats per predicted token")
    _save(figure, panels, png_path)


def plot_speeds(rows: Sequence[ComparisonRow], png_path: Path) -> None:
    """Draw the first metric over sentences/s: a panel for each batch size, a colour a system."""
    timed = [row for row in rows if row.speeds]
    sizes = list(timed[0].speeds) if timed else []
    # Without any speed one empty panel stays, since the report shows the picture.
    figure, panels = _figure(max(1, len(sizes)))
    metric = next(iter(rows[0].values))
    for panel, size in zip(panels, sizes, strict=False):
        for system in dict.fromkeys(row.system for row in rows):
            rows_of_system = [row for row in timed if row.system == system]
            speeds = [row.speeds[size] for row in rows_of_system]
            qualities = [mean(row.values[metric]) for row in rows_of_system]
            panel.plot(speeds, qualities, "o", label=system)
            for row, speed, quality in zip(rows_of_system, speeds, qualities, strict=True):
                panel.annotate(row.way, (speed, quality), fontsize=6, alpha=0.7)
        # Ways differ by factors: on a linear axis all slow ones would be one heap.
        panel.set_xscale("log")
        panel.set_title(f"batch {size}")
        panel.set_xlabel("sentences/s")
        panel.set_ylabel(metric)
    _save(figure, panels, png_path)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    """A figure with panels side by side."""
    # Slow to import, and needed once, at the end. `Figure` itself needs no display, as pyplot does.
    figure_class = require("matplotlib.figure", "plots").Figure
    figure = figure_class(figsize=(5.5 * panels, 4.5), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Any, panels: Sequence[Any], png_path: Path) -> None:
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        # matplotlib warns of a legend without entries.
        if panel.lines:
            panel.legend(frameon=False)
    figure.savefig(png_path)
