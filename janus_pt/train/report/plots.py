"""The loss curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from janus_pt.train.report.metrics_file import read_metrics
from janus_pt.utils.extras import require

STREAMS = {"ar": ("AR", "#1f77b4"), "aux": ("AUX", "#2ca02c"), "nar": ("NAR", "#d95f02")}
"""Name and colour of each stream's curve."""


def plot_losses(metrics_path: Path, png_path: Path) -> None:
    """Draw every stream's training (thin) and validation (thick) loss over the steps of a metrics file.

    Raises:
        UserError: matplotlib is not installed.
    """
    records = read_metrics(metrics_path)
    # Slow to import, and needed once, at the end.
    figure = require("matplotlib.figure", "plots").Figure(
        figsize=(9, 5), dpi=120, layout="constrained"
    )
    axes = figure.add_subplot()
    for stream, (name, colour) in STREAMS.items():
        for key, label, style in (
            (f"loss/{stream}", f"{name} training", {"linewidth": 1.0, "alpha": 0.6}),
            (
                f"valid/loss/{stream}",
                f"{name} validation",
                {"linewidth": 2.0, "marker": "o", "markersize": 4},
            ),
        ):
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, color=colour, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, nats per predicted token")
    axes.set_title(metrics_path.parent.name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, ncols=len(STREAMS))
    figure.savefig(png_path)
