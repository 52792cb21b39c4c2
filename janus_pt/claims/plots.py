"""Pictures of a comparison: validation losses over updates, quality against speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from janus_pt.claims.plan import Cell
from janus_pt.train.report.metrics_file import read_metrics

if TYPE_CHECKING:
    from janus_pt.claims.report import Row

STREAMS = {"ar": "AR", "nar": "NAR"}


def plot_curves(cells: Sequence[Cell], png_path: Path) -> None:
    """Validation loss of the AR and of the NAR stream over updates, a colour for each system, a line for each seed."""
    figure, panels = _figure(len(STREAMS))
    systems = list(dict.fromkeys(cell.system.name for cell in cells))
    for panel, (stream, name) in zip(panels, STREAMS.items(), strict=True):
        for cell in cells:
            key = f"valid/loss/{stream}"
            records = [r for r in read_metrics(cell.run / "metrics.jsonl") if key in r]
            if not records:
                continue
            colour, again = f"C{systems.index(cell.system.name)}", cell.seed != cells[0].seed
            label = None if again else cell.system.name
            panel.plot(
                [r["step"] for r in records], [r[key] for r in records], color=colour, label=label
            )
        panel.set(
            xlabel="update",
            ylabel="cross-entropy, nats per predicted token",
            title=f"{name}, validation",
        )
    _save(figure, panels, png_path)


def plot_speeds(rows: Sequence[Row], png_path: Path) -> None:
    """The first metric over sentences/s: a panel for each batch size, a colour for each system."""
    sizes = list(next((row.speeds for row in rows if row.speeds), {}))
    figure, panels = _figure(max(1, len(sizes)))
    metric = next(iter(rows[0].values))
    for panel, size in zip(panels, sizes, strict=False):
        for name in dict.fromkeys(row.system for row in rows):
            own = [row for row in rows if row.system == name and row.speeds]
            quality = [mean(row.values[metric]) for row in own]
            panel.plot([row.speeds[size] for row in own], quality, "o", label=name)
            for row, value in zip(own, quality, strict=True):
                panel.annotate(row.way, (row.speeds[size], value), fontsize=6, alpha=0.7)
        panel.set(xscale="log", xlabel="sentences/s", ylabel=metric, title=f"batch {size}")
    _save(figure, panels, png_path)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(5.5 * panels, 4.5), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Any, panels: Sequence[Any], png_path: Path) -> None:
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.lines:
            panel.legend(frameon=False)
    figure.savefig(png_path)
