"""The rows of a comparison: each system in each way of decoding, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from janus_pt.claims.compare import baseline_of, compare
from janus_pt.claims.data import Data
from janus_pt.claims.decode import read_predictions, read_row
from janus_pt.claims.plan import Cell
from janus_pt.claims.speed import Speed, speed_key
from janus_pt.claims.ways import GREEDY
from janus_pt.tasks.metrics import compared_metric


@dataclass
class ComparisonRow:
    """A system in one way of decoding; lists have one value a seed.

    Attributes:
        values: metric -> values.
        interval: half the width of the bootstrap's 95 % interval of the compared metric.
        against: system and way of the same seed that it is compared with; empty if there is none.
        difference, p_value: of the compared metric, against that.
        passes: mean decoder passes of a sentence.
        speeds: batch size -> sentences/s.
        as_greedy: share of outputs equal to greedy search's; None where that says nothing.
    """

    system: str
    way: str
    options: Mapping[str, Any]
    values: dict[str, list[float]] = field(default_factory=dict)
    interval: list[float] = field(default_factory=list)
    against: str = ""
    difference: list[float] = field(default_factory=list)
    p_value: list[float] = field(default_factory=list)
    passes: float = 0.0
    speeds: dict[str, float] = field(default_factory=dict)
    as_greedy: float | None = None


def collect_rows(
    cells: Sequence[Cell], data: Data, speed: Speed, baseline: str | None
) -> list[ComparisonRow]:
    """The rows of all systems and ways, in the order of the cells."""
    rows: dict[tuple[str, str], ComparisonRow] = {}
    for cell in cells:
        seeds = sum(other.system is cell.system for other in cells)
        for way, options in cell.system.ways.items():
            # All seeds of a system and way share a row.
            key = (cell.system.name, way)
            row = rows.setdefault(key, ComparisonRow(*key, options))
            result = read_row(cell.folder, way)
            for name, value in result["metrics"].items():
                row.values.setdefault(name, []).append(value)
            _add_comparison(row, cell, baseline_of(cell, way, cells, baseline), data)
            row.passes += result["decoder_passes"] / seeds
            # Only the first seed's models are timed: for the others there is nothing to add.
            row.speeds |= speed.speeds.get(speed_key(cell, way), {})
            # Speculation claims to lose nothing: this is the check.
            if way == "speculative":
                row.as_greedy = share_of_equal_outputs(cell, way, GREEDY)
    return list(rows.values())


def _add_comparison(
    row: ComparisonRow, cell: Cell, other: tuple[Cell, str] | None, data: Data
) -> None:
    """Add a seed's interval and, if there is something to compare with, the difference."""
    metric = compared_metric(data.row.metrics)
    comparison = compare(cell, row.way, other, data)[metric]
    row.interval.append(comparison["system_ci"])
    if other is not None:
        other_cell, other_way = other
        row.against = f"{other_cell.system.name}, {other_way}"
        row.difference.append(comparison["difference"])
        row.p_value.append(comparison["p_value"])


def share_of_equal_outputs(cell: Cell, way: str, other_way: str) -> float:
    """Share of the test set for which two ways of a cell write the same text."""
    texts = read_predictions(cell.folder, way)
    other_texts = read_predictions(cell.folder, other_way)
    return mean(a == b for a, b in zip(texts, other_texts, strict=True))
