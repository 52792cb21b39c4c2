"""GLGE's overall score (Liu et al. 2021), from the reports of its eight tasks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from janus_pt.tasks.table import TASKS
from janus_pt.utils.commands import add_json_flag
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import print_json, write_json

GLGE = "glge/"
"""Beginning of the names of GLGE's tasks."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate.py overall`."""
    parser.add_argument(
        "--reports", required=True, nargs="+", metavar="FILE", help="reports of the eight tasks"
    )
    parser.add_argument("--mode", required=True, help="the mode whose rows are taken")
    add_json_flag(parser, "file for the values", required=True)


def run(args: argparse.Namespace) -> None:
    """Compute the overall score; print and write it."""
    scores = overall_of_reports(args.reports, args.mode)
    write_json(args.json, scores)
    print_json(scores)


def glge_overall(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """GLGE's overall score and each task's part in it: the plain mean of the task's values.

    Distinct counts like any other value, as on GLGE's leaderboard.

    Args:
        scores: task name (`glge/…`) -> value name -> value, 0 to 100.

    Returns:
        `overall`, and task name -> its mean.

    Raises:
        UserError: one of the eight tasks, or a value of one, is missing.
    """
    means = {}
    for name, task in TASKS.items():
        if not name.startswith(GLGE):
            continue
        if name not in scores:
            raise UserError(f"the overall score needs all eight tasks, but {name} is missing")
        missing = [value for value in task.overall_values if value not in scores[name]]
        if missing:
            raise UserError(f"{name}: the overall score needs its {', '.join(missing)}")
        means[name] = mean(scores[name][value] for value in task.overall_values)
    return {"overall": mean(means.values()), **means}


@dataclass(frozen=True)
class _TaskReport:
    """What is read of a report of `janus-pt evaluate`; `rows`: mode -> metric -> value."""

    path: str
    task: str
    split: str
    rows: dict[str, dict[str, float]]


def overall_of_reports(paths: Sequence[str], mode: str) -> dict[str, float]:
    """`glge_overall` of the rows for `mode` in reports of `janus-pt evaluate`.

    Raises:
        UserError: a file is no report or has no such row, a task has two reports, or the reports
            are of different splits.
    """
    reports: dict[str, _TaskReport] = {}
    for path in paths:
        report = _read_report(path)
        if mode not in report.rows:
            modes = ", ".join(report.rows)
            raise UserError(f"{path}: has no row for mode {mode!r}, only {modes}")
        if report.task in reports:
            earlier = reports[report.task].path
            raise UserError(f"{path}: is about {report.task}, as {earlier} is; give one of them")
        # Known by their content, not by their names: two files may be about one task.
        reports[report.task] = report
        first = next(iter(reports.values()))
        if report.split != first.split:
            raise UserError(
                f"{path}: is about split {report.split}, {first.path} about {first.split}; take "
                "one for all tasks"
            )
    return glge_overall({task: report.rows[mode] for task, report in reports.items()})


def _read_report(path: str) -> _TaskReport:
    try:
        # Python's JSON knows NaN, of which no mean can be taken.
        content = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
        rows = {}
        for row in content["rows"]:
            rows[row["mode"]] = {name: float(value) for name, value in row["metrics"].items()}
        return _TaskReport(path, content["task"], content["split"], rows)
    # Any file may be given here: whatever it holds, it is the same mistake.
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path}: no report of janus-pt evaluate") from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no score")
