"""The loss curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_pt.train.report.metrics_file import Record, read_metrics
from janus_pt.utils.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STREAMS = {"ar": ("AR", "#1f77b4"), "aux": ("AUX", "#2ca02c"), "nar": ("NAR", "#d95f02")}
"""Name and colour of each stream's curve."""
TRAINING_STYLE: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.6}
VALIDATION_STYLE: dict[str, Any] = {"linewidth": 2.0, "marker": "o", "markersize": 4}


def plot_losses(metrics_path: Path, png_path: Path) -> None:
    """Draw training (thin) and validation (thick) loss of every stream over the steps.

    Raises:
        UserError: matplotlib is not installed.
    """
    records = read_metrics(metrics_path)
    # Matplotlib takes a second to import and is needed once, at the end of a run. `Figure` itself
    # instead of pyplot, which looks for a display.
    figure_class = require("matplotlib.figure", "plots").Figure
    figure = figure_class(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for stream, (name, colour) in STREAMS.items():
        training = {"label": f"{name} training", "color": colour, **TRAINING_STYLE}
        _plot_curve(axes, records, f"loss/{stream}", training)
        validation = {"label": f"{name} validation", "color": colour, **VALIDATION_STYLE}
        _plot_curve(axes, records, f"valid/loss/{stream}", validation)
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, nats per predicted token")
    axes.set_title(metrics_path.parent.name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, ncols=len(STREAMS))
    figure.savefig(png_path)


def _plot_curve(axes: Axes, records: Sequence[Record], key: str, style: dict[str, Any]) -> None:
    """One metric over the steps; nothing if no record has it (a stream the objective lacks)."""
    measured = [record for record in records if key in record]
    if measured:
        steps = [record["step"] for record in measured]
        values = [record[key] for record in measured]
        axes.plot(steps, values, **style)
