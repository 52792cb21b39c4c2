"""The demo's table of losses at start and end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from janus_pt.train.report.metrics_file import read_metrics
from janus_pt.utils.tables import format_table

STREAMS = ("ar", "nar", "aux")


def loss_table(runs: Mapping[str, Path]) -> str:
    """Each stream's loss in the first and in the last validation.

    Args:
        runs: name in the table -> run folder.
    """
    rows = []
    for name, run in runs.items():
        records = read_metrics(run / "metrics.jsonl")
        validations = [record for record in records if "valid/loss/total" in record]
        for stream in STREAMS:
            first = validations[0][f"valid/loss/{stream}"]
            last = validations[-1][f"valid/loss/{stream}"]
            rows.append([name, stream.upper(), f"{first:.3f}", f"{last:.3f}"])
    headers = ("validation loss (nats per token)", "", "start", "end")
    return format_table(rows, headers, align="llr")
