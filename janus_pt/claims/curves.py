"""How each training's validations went on, over updates and over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus_pt.claims.plan import Cell
from janus_pt.train.report.metrics_file import Record, read_metrics

PREFIX = "valid/"


@dataclass(frozen=True)
class Curve:
    """The validations of a training.

    Attributes:
        updates: at which they were.
        minutes: of training until then, without the validations themselves.
        values: name -> a value for each validation, such as "loss/ar" or "exact_match".
    """

    cell: str
    system: str
    updates: list[int]
    minutes: list[float]
    values: dict[str, list[float]]


def read_curves(cells: Sequence[Cell]) -> list[Curve]:
    """The curves of all trainings, in the order of the cells."""
    return [_read_curve(cell) for cell in cells]


def _read_curve(cell: Cell) -> Curve:
    seconds = 0.0
    tokens = 0.0
    curve = Curve(cell.name, cell.system.name, [], [], {})
    for record in read_metrics(cell.run / "metrics.jsonl"):
        if "tokens_per_s" in record:
            # A report tells its speed, and all tokens so far: together they give its seconds.
            seconds += (record["tokens"] - tokens) / record["tokens_per_s"]
            tokens = record["tokens"]
        values = _validated(record)
        if values:
            curve.updates.append(int(record["step"]))
            curve.minutes.append(seconds / 60)
            for name, value in values.items():
                curve.values.setdefault(name, []).append(value)
    return curve


def _validated(record: Record) -> dict[str, float]:
    """The values of a validation; empty if the record is of something else."""
    return {
        key.removeprefix(PREFIX): value for key, value in record.items() if key.startswith(PREFIX)
    }
