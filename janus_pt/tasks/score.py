"""Scoring of files: any system's predictions against references, and the overall score of GLGE."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from janus_pt.tasks.bleu import paired_bootstrap
from janus_pt.tasks.metrics import check_metrics, compute
from janus_pt.tasks.outputs import pair_up
from janus_pt.tasks.table import TASKS
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import check_equally_long, read_lines


def score_files(
    predictions: str,
    references: Sequence[str],
    metrics: Sequence[str],
    sources: str | None = None,
    baseline: str | None = None,
    tokenize: str = "13a",
) -> dict[str, Any]:
    """Score a file: metric -> value, and `signatures`, `lines`, `outputs` (fewer than lines where sources group them).

    Args:
        references: files with a reference for each prediction.
        sources: lines with an identical source are one output; see `pair_up`.
        baseline: another system's predictions; adds `paired_bootstrap`.
        tokenize: sacrebleu's tokenizer for BLEU.

    Raises:
        UserError: a file cannot be read or has another number of lines; a metric is unknown.
    """
    check_metrics(metrics, tokenize)
    names = [predictions, *references, *(name for name in (sources, baseline) if name)]
    files = {name: read_lines(name) for name in names}
    check_equally_long(files)
    by_file = [files[name] for name in references]
    grouping = files[sources] if sources else None
    outputs = pair_up(files[predictions], by_file, grouping)
    found = compute(outputs, metrics, tokenize)
    result: dict[str, Any] = {**found.values, "signatures": found.signatures}
    result |= {"lines": len(files[predictions]), "outputs": len(outputs)}
    if baseline:
        result["paired_bootstrap"] = paired_bootstrap(
            outputs, pair_up(files[baseline], by_file, grouping).predictions, tokenize
        )
    return result


def glge_overall(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """GLGE's overall score, `overall`, and each task's part in it: the plain mean of its metrics, distinct included.

    Args:
        scores: task name (`glge/…`) -> metric -> value, 0 to 100.

    Raises:
        UserError: one of the eight tasks, or a metric of one, is missing.
    """
    parts = {}
    for name, task in TASKS.items():
        if not name.startswith("glge/"):
            continue
        if name not in scores:
            raise UserError(f"the overall score needs all eight tasks, but {name} is missing")
        missing = [metric for metric in task.scores if metric not in scores[name]]
        if missing:
            raise UserError(f"{name}: the overall score needs its {', '.join(missing)}")
        parts[name] = mean(scores[name][metric] for metric in task.scores)
    return {"overall": mean(parts.values()), **parts}


def overall_of_reports(paths: Sequence[str], mode: str) -> dict[str, float]:
    """`glge_overall` of the rows for `mode` in reports of `launchers/evaluate.py`.

    Raises:
        UserError: a file is no report or has no such row, a task has two, or they are not of one split.
    """
    found: dict[str, tuple[str, str]] = {}
    scores = {}
    for path in paths:
        try:
            report = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
            rows = {
                row["mode"]: {name: float(x) for name, x in row["metrics"].items()}
                for row in report["rows"]
            }
            task, split = report["task"], report["split"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise UserError(f"{path}: no report of launchers/evaluate.py") from None
        if mode not in rows:
            raise UserError(f"{path}: has no row for mode {mode!r}, only {', '.join(rows)}")
        if task in found:
            raise UserError(f"{path}: is about {task}, as {found[task][0]} is; give one of them")
        first, theirs = next(iter(found.values()), (path, split))
        if split != theirs:
            raise UserError(
                f"{path}: is about split {split}, {first} about {theirs}; take one for all tasks"
            )
        found[task], scores[task] = (path, split), rows[mode]
    return glge_overall(scores)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no score")
