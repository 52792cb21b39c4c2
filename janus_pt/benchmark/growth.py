"""A step of ours and a plain one against length, vocabulary, masked share and size.

The small shape with one thing changed at a time, and as many target tokens a step. Each axis takes
less than a minute on two cores. With --json the points join the other axes' that the file has
already. --plot draws all of them, beside the time that the FLOPs of the same shapes would take at
the speed of the small shape on that axis.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from janus_pt.benchmark.case import Case, make_batch, pairs_case
from janus_pt.benchmark.timing import available_device, medians
from janus_pt.benchmark.train import TrainingStep, slots_of_a_sample, step_flops, yardstick_step
from janus_pt.model.cost import Workload
from janus_pt.planning.flops import flops_per_step
from janus_pt.utils.commands import add_json_flag
from janus_pt.utils.errors import UserError
from janus_pt.utils.extras import require
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import write_json

Point = dict[str, float]
"""`value` on the axis, and the numbers measured there."""
VOCAB_SIZE, SENTENCES, LENGTH = 8000, 32, 32
"""The small shape."""
TARGET_TOKENS = SENTENCES * LENGTH
HEADS = 4
"""A hidden size must be a multiple of it."""
OURS_COLOUR, YARDSTICK_COLOUR = "#d95f02", "#1f77b4"
HEADERS = (
    "",
    "step, s",
    "yardstick, s",
    "ratio",
    "by FLOPs",
    "slots a sample",
    "GFLOP",
    "GFLOP/s",
)


class Axis(NamedTuple):
    """One thing that is changed.

    Attributes:
        name: label of the axis.
        values: what is measured.
        base: the value that the small shape has.
        case: makes the case for a value.
    """

    name: str
    values: tuple[float, ...]
    base: float
    case: Callable[[float], Case]


def _case_of_length(length: float) -> Case:
    # Fewer sentences where they are longer: a step always has as many target tokens.
    return pairs_case(VOCAB_SIZE, round(TARGET_TOKENS / length), round(length))


def _case_of_vocabulary(vocab_size: float) -> Case:
    return pairs_case(round(vocab_size), SENTENCES, LENGTH)


def _case_of_masked_share(masked_share: float) -> Case:
    return pairs_case(VOCAB_SIZE, SENTENCES, LENGTH, masked_share=masked_share)


def _case_of_size(hidden_size: float) -> Case:
    return pairs_case(VOCAB_SIZE, SENTENCES, LENGTH, hidden_size=round(hidden_size))


AXES = {
    "length": Axis("tokens of a sentence", (16, 32, 64, 128, 256), 32, _case_of_length),
    "vocabulary": Axis(
        "tokens in the vocabulary", (4000, 8000, 16000, 32000), 8000, _case_of_vocabulary
    ),
    "masked": Axis(
        "share of the target masked", (0.15, 0.35, 0.55, 0.75, 0.95), 0.55, _case_of_masked_share
    ),
    "size": Axis("hidden size", (128, 256, 384, 512), 256, _case_of_size),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `benchmark.py growth`."""
    parser.add_argument(
        "--axis",
        action="append",
        choices=AXES,
        help="what is changed; may be given several times (default: all)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU (default: %(default)s)")
    add_json_flag(parser, "put the points into this file; other axes in it stay")
    parser.add_argument("--plot", metavar="PNG", help="draw the points, the file's included")


def run(args: argparse.Namespace) -> None:
    """Measure, print, draw."""
    torch.set_num_threads(args.threads)
    # Before anything is measured: a file of something else must not be overwritten at the end.
    points = read_points(Path(args.json)) if args.json else {}
    if args.plot:
        require("matplotlib", "plots")
    for name in args.axis or AXES:
        points[name] = measure_axis(AXES[name], args.repeats, available_device())
        rows = [table_row(name, point) for point in points[name]]
        print(format_table(rows, HEADERS, markdown=True) + "\n", flush=True)
    if args.json:
        write_json(args.json, points)
    if args.plot:
        plot(points, Path(args.plot))


def read_points(path: Path) -> dict[str, list[Point]]:
    """The points that a file has, by axis; none if there is no file.

    Raises:
        UserError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        content: dict[str, list[Point]] = json.loads(path.read_text())
        for name, points in content.items():
            if name not in AXES or not all("ratio" in point for point in points):
                raise ValueError(name)
    except (ValueError, TypeError, AttributeError):
        raise UserError(
            f"{path}: not written by `benchmark.py growth`: name another --json"
        ) from None
    return content


def measure_axis(axis: Axis, repeats: int, device: torch.device) -> list[Point]:
    """The points of an axis."""
    return [measure(axis.case(value), value, repeats, device) for value in axis.values]


def measure(case: Case, value: float, repeats: int, device: torch.device) -> Point:
    """Time both steps, by turns."""
    step = TrainingStep(case, device)
    step_s, yardstick_s = medians([step, yardstick_step(case, device)], repeats, device)
    flops, yardstick_flops = both_flops(case)
    return {
        "value": value,
        "step_s": step_s,
        "yardstick_step_s": yardstick_s,
        "ratio": step_s / yardstick_s,
        "flops": flops,
        "yardstick_flops": yardstick_flops,
        "slots": slots_of_a_sample(case, step.batch),
    }


def both_flops(case: Case) -> tuple[float, float]:
    """Operations of our step and of the plain one, which predicts at every target token."""
    plain = Workload(
        source_tokens=case.samples * case.sizes.source,
        content_slots=case.target_tokens,
        query_slots=0,
        predicted_slots=case.target_tokens,
        source_length=case.sizes.source,
        # A token of the plain decoder reads half of its target on average.
        content_length=case.sizes.target / 2,
    )
    return step_flops(case, make_batch(case)), flops_per_step(case.model, plain)


def table_row(axis: str, point: Point) -> list[str]:
    """A point as a row below `HEADERS`."""
    flops_ratio = point["flops"] / point["yardstick_flops"]
    flops_per_s = point["flops"] / point["step_s"]
    return [
        f"{axis} {point['value']:,g}",
        f"{point['step_s']:.3f}",
        f"{point['yardstick_step_s']:.3f}",
        f"{point['ratio']:.2f}",
        f"{flops_ratio:.2f}",
        f"{point['slots']:.0f}",
        f"{point['flops'] / 1e9:.0f}",
        f"{flops_per_s / 1e9:.0f}",
    ]


def plot(points: dict[str, list[Point]], path: Path) -> None:
    """Draw a column for each axis: seconds above, the ratio below.

    Points are measured, lines are by formula.
    """
    figure_class = require("matplotlib.figure", "plots").Figure
    figure = figure_class(figsize=(3.6 * len(points), 6), dpi=120, layout="constrained")
    columns = figure.subplots(2, len(points), squeeze=False).T
    for (seconds_panel, ratio_panel), (name, points_of_axis) in zip(
        columns, points.items(), strict=True
    ):
        _draw_axis(seconds_panel, ratio_panel, AXES[name], points_of_axis)
    figure.savefig(path)


def _draw_axis(seconds_panel: Any, ratio_panel: Any, axis: Axis, points: list[Point]) -> None:
    values = [point["value"] for point in points]
    # The lines meet the measured points here, and nowhere else by construction.
    base = next(point for point in points if point["value"] == axis.base)
    line_values = _values_of_line(axis)
    flops, yardstick_flops = _flops_of_line(axis, line_values)
    systems = (
        ("JANUS", "", flops, OURS_COLOUR),
        ("yardstick", "yardstick_", yardstick_flops, YARDSTICK_COLOUR),
    )
    for label, prefix, flops_of_system, colour in systems:
        seconds_per_flop = base[f"{prefix}step_s"] / base[f"{prefix}flops"]
        expected = flops_of_system * seconds_per_flop
        measured = [point[f"{prefix}step_s"] for point in points]
        seconds_panel.plot(line_values, expected, color=colour, linewidth=1)
        seconds_panel.plot(values, measured, "o", color=colour, label=label)
    ratios = [point["ratio"] for point in points]
    ratio_panel.plot(
        line_values, flops / yardstick_flops, color="0.4", linewidth=1, label="of the FLOPs"
    )
    ratio_panel.plot(values, ratios, "o", color="black", label="measured")
    _finish_panel(seconds_panel, axis, values, "seconds a step", "upper left")
    _finish_panel(ratio_panel, axis, values, "JANUS : yardstick", "lower left")


def _flops_of_line(axis: Axis, values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Operations of our step and of the plain one, at exactly `TARGET_TOKENS` target tokens."""
    scaled = []
    for value in values:
        case = axis.case(value)
        # A length between the measured ones may not divide the tokens of a step.
        scale = TARGET_TOKENS / case.target_tokens
        scaled.append(np.array(both_flops(case)) * scale)
    ours, plain = np.array(scaled).T
    return ours, plain


def _finish_panel(panel: Any, axis: Axis, values: Sequence[float], title: str, legend: str) -> None:
    panel.set(xlabel=axis.name, ylabel=title, ylim=(0, None))
    # All axes but the masked share double from value to value.
    if axis.base > 1:
        panel.set_xscale("log", base=2)
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.minorticks_off()
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc=legend)


def _values_of_line(axis: Axis) -> list[float]:
    """Values at which a line is computed."""
    if axis.base < 1:
        # A share of a sentence: only whole numbers of masked tokens exist.
        first, last = round(LENGTH * axis.values[0]), round(LENGTH * axis.values[-1])
        return [tokens / LENGTH for tokens in range(first, last + 1)]
    # Three between each value and the next, rounded to what can be a hidden size.
    between = [np.geomspace(a, b, 4, endpoint=False) for a, b in pairwise(axis.values)]
    rounded = [HEADS * round(value / HEADS) for value in np.concatenate(between)]
    return [*rounded, axis.values[-1]]
