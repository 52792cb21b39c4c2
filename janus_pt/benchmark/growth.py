"""`launchers/benchmark.py growth`: a step of ours and a plain one against length, vocabulary, masked share and size.

The small shape with one thing changed at a time, and as many target tokens a step. Each axis takes less than a minute
on two cores; with --json its points join those of other axes that the file has already, and --plot draws all of them,
beside what the FLOPs of the same shapes come to at the speed of the small shape on that axis.
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
from janus_pt.benchmark.timing import medians
from janus_pt.benchmark.train import Step, slots_of_a_sample, step_flops, yardstick
from janus_pt.model.cost import Workload
from janus_pt.planning.flops import flops_per_step
from janus_pt.utils.errors import UserError

Point = dict[str, float]
"""`value` on the axis and what was measured there."""
TARGET_TOKENS, HEADS = 1024, 4
OURS, PLAIN = "#d95f02", "#1f77b4"


class Axis(NamedTuple):
    """What is changed, its values, which of them is the small shape's, and the case for one."""

    name: str
    values: tuple[float, ...]
    base: float
    case: Callable[[float], Case]


AXES = {
    "length": Axis(
        "tokens of a sentence", (16, 32, 64, 128, 256), 32,
        lambda v: pairs_case(8000, round(TARGET_TOKENS / v), round(v)),
    ),
    "vocabulary": Axis(
        "tokens in the vocabulary", (4000, 8000, 16000, 32000), 8000, lambda v: pairs_case(round(v), 32, 32)
    ),
    "masked": Axis(
        "share of the target masked", (0.15, 0.35, 0.55, 0.75, 0.95), 0.55,
        lambda v: pairs_case(8000, 32, 32, masked_share=v),
    ),
    "size": Axis("hidden size", (128, 256, 384, 512), 256, lambda v: pairs_case(8000, 32, 32, hidden_size=round(v))),
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py growth", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument(
        "--axis", action="append", choices=AXES, help="which; may be given again; else all"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument(
        "--json", metavar="FILE", help="put the points into this file; other axes in it stay"
    )
    parser.add_argument("--plot", metavar="PNG", help="draw the points, those of the file included")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = read_points(Path(asked.json)) if asked.json else {}
    print("| | step, s | yardstick, s | ratio | by FLOPs | slots a sample | GFLOP | GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|")
    for axis in asked.axis or AXES:
        found[axis] = []
        for value in AXES[axis].values:
            found[axis].append(measure(AXES[axis].case(value), value, asked.repeats, device))
            print(row(axis, found[axis][-1]), flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1) + "\n")
    if asked.plot:
        plot(found, Path(asked.plot))


def read_points(path: Path) -> dict[str, list[Point]]:
    """The points that a file has, by axis; none if there is no file.

    Raises:
        UserError: it is something else.
    """
    if not path.exists():
        return {}
    try:
        found: dict[str, list[Point]] = json.loads(path.read_text())
        assert all(
            axis in AXES and all("ratio" in point for point in points)
            for axis, points in found.items()
        )
    except (ValueError, TypeError, AttributeError, AssertionError):
        raise UserError(
            f"{path}: not written by `benchmark.py growth`: name another --json"
        ) from None
    return found


def measure(case: Case, value: float, repeats: int, device: torch.device) -> Point:
    """Both steps, in turns."""
    step = Step(case, device)
    ours, plain = medians([step, yardstick(case, device)], repeats, device)
    flops, plain_flops = both_flops(case)
    return {
        "value": value, "step_s": ours, "yardstick_step_s": plain, "ratio": ours / plain, "flops": flops,
        "yardstick_flops": plain_flops, "slots": slots_of_a_sample(case, step.batch),
    }  # fmt: skip


def both_flops(case: Case) -> tuple[float, float]:
    """Operations of our step and of the plain one, which predicts at every target token."""
    plain = Workload(
        source_tokens=case.samples * case.sizes.source,
        content_slots=case.target_tokens,
        query_slots=0,
        predicted_slots=case.target_tokens,
        source_length=case.sizes.source,
        content_length=case.sizes.target / 2,
    )
    return step_flops(case, make_batch(case)), flops_per_step(case.model, plain)


def row(axis: str, point: Point) -> str:
    """A point as a line of the table."""
    rate = point["flops"] / point["step_s"] / 1e9
    counted = point["flops"] / point["yardstick_flops"]
    cells = [
        f"{axis} {point['value']:,g}",
        f"{point['step_s']:.3f}",
        f"{point['yardstick_step_s']:.3f}",
    ]
    cells += [
        f"{point['ratio']:.2f}",
        f"{counted:.2f}",
        f"{point['slots']:.0f}",
        f"{point['flops'] / 1e9:.0f}",
    ]
    return f"| {' | '.join([*cells, f'{rate:.0f}'])} |"


def plot(found: dict[str, list[Point]], path: Path) -> None:
    """A column for each axis: seconds above, the ratio below; points are measured, lines by formula."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(3.6 * len(found), 6), dpi=120, layout="constrained")
    for axes, (axis, points) in zip(
        figure.subplots(2, len(found), squeeze=False).T, found.items(), strict=True
    ):
        _draw(axes, AXES[axis], points)
    figure.savefig(path)


def _draw(axes: Any, axis: Axis, points: list[Point]) -> None:
    seconds, ratios = axes
    values = [point["value"] for point in points]
    base = next(point for point in points if point["value"] == axis.base)
    between = _between(axis)
    cases = [axis.case(value) for value in between]
    ours, plain = np.array(
        [np.array(both_flops(case)) * TARGET_TOKENS / case.target_tokens for case in cases]
    ).T
    for name, key, flops, colour in (
        ("JANUS", "", ours, OURS),
        ("yardstick", "yardstick_", plain, PLAIN),
    ):
        seconds.plot(
            between, flops * base[f"{key}step_s"] / base[f"{key}flops"], color=colour, linewidth=1
        )
        seconds.plot(values, [p[f"{key}step_s"] for p in points], "o", color=colour, label=name)
    ratios.plot(between, ours / plain, color="0.4", linewidth=1, label="of the FLOPs")
    ratios.plot(values, [point["ratio"] for point in points], "o", color="black", label="measured")
    for panel, title in ((seconds, "seconds a step"), (ratios, "JANUS : yardstick")):
        panel.set(xlabel=axis.name, ylabel=title, ylim=(0, None))
        if axis.base > 1:
            panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:g}" for value in values])
            panel.minorticks_off()
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="upper left" if panel is seconds else "lower left")


def _between(axis: Axis) -> list[float]:
    """Values for the line: every whole number of masked tokens, else three between each value and the next."""
    if axis.base < 1:
        return [
            tokens / 32
            for tokens in range(round(32 * axis.values[0]), round(32 * axis.values[-1]) + 1)
        ]
    steps = [np.geomspace(a, b, 4, endpoint=False) for a, b in pairwise(axis.values)]
    return [*(HEADS * round(value / HEADS) for value in np.concatenate(steps)), axis.values[-1]]
