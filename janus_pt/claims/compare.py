"""Which cells are compared with which, and the paired bootstrap of their outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from janus_pt.claims.data import Data
from janus_pt.claims.decode import predictions_file, read_predictions, result_file
from janus_pt.claims.plan import Cell
from janus_pt.claims.ways import COUNTERPART
from janus_pt.config.objectives import OBJECTIVES
from janus_pt.tasks.evaluate import comparable
from janus_pt.tasks.metrics import compare_outputs, compared_metric
from janus_pt.tasks.outputs import Outputs
from janus_pt.utils.files import file_hash, write_atomically


def baseline_of(
    cell: Cell, way: str, cells: Sequence[Cell], baseline: str | None
) -> tuple[Cell, str] | None:
    """The cell of the same seed, and its way, that a cell's way is compared with.

    Args:
        baseline: name of the system to compare with; None: the objective whose row says so for
            the way's mode (`baseline_of` in config/objectives.py).

    Returns:
        None if that system is not compared, has no such way, or is the cell itself.
    """
    name = baseline or _default_baseline(cell.system.ways[way]["mode"])
    candidates = [c for c in cells if c.system.name == name and c.seed == cell.seed]
    if not candidates:
        return None
    other = candidates[0]
    other_way = way if way in other.system.ways else COUNTERPART.get(way)
    if other_way is None or other_way not in other.system.ways:
        return None
    # Nothing is compared with itself.
    if other is cell and other_way == way:
        return None
    return other, other_way


def _default_baseline(mode: str) -> str | None:
    for name, row in OBJECTIVES.items():
        if mode in row.baseline_of:
            return name
    return None


def compare(cell: Cell, way: str, other: tuple[Cell, str] | None, data: Data) -> dict[str, Any]:
    """Paired bootstrap of a cell's outputs against another's, by the task's compared metric.

    Args:
        other: cell and way to compare with; None: the cell itself, for its interval alone.

    Returns:
        metric -> `compare_outputs`'s values; and `of`, hashes of the outputs compared.
    """
    metric = compared_metric(data.row.metrics)
    sides = [(cell, way), other or (cell, way)]
    path = result_file(cell.folder, way).with_suffix(".compared.json")
    hashes = [file_hash(predictions_file(side.folder, way)) for side, way in sides]
    # The bootstrap takes longer than all the rest of the report: it is kept for these outputs.
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        if known.get("of") == hashes and metric in known:
            return known
    ours, theirs = (_outputs(side, way, data) for side, way in sides)
    comparison = {"of": hashes, metric: compare_outputs(metric, ours, theirs.predictions)}
    write_atomically(path, json.dumps(comparison, indent=1))
    return comparison


def _outputs(cell: Cell, way: str, data: Data) -> Outputs:
    return comparable(data.row, read_predictions(cell.folder, way), data.test)
