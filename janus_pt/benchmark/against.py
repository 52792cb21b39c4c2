"""Compare this checkout with another one: `benchmark.py train|decode --against DIR`.

The two checkouts take turns: each round runs the benchmark of one and then of the other, in
processes of their own, so that a machine that gets slower or faster meanwhile does so for both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from janus_pt.utils.errors import UserError
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import write_json

SCRIPT = Path("launchers", "benchmark.py")
THIS_CHECKOUT = Path(__file__).resolve().parents[2]
Numbers = Mapping[str, float]
HEADERS = ("", "here", "against", "ratio", "ratio of each round")


def add_against_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--against DIR` and `--rounds N`."""
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="compare with the checkout of another commit: both are measured by turns",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="with --against: how often each checkout is measured (default: %(default)s)",
    )


def compare_steps(args: argparse.Namespace) -> None:
    """Compare the seconds of a training step; the yardstick, the same in both, shows the noise."""
    flags = ["--threads", args.threads, "--repeats", args.repeats]
    flags += ["--config", args.config] if args.config else ["--shape", args.shape]
    if args.ar_stream:
        flags += ["--ar-stream", args.ar_stream]
    rounds = _measure_by_turns(args.against, "train", flags, "--json", args.rounds)
    names = ("step_s", "yardstick_step_s", "ratio", "peak_rss_mb")
    here, there = ([{name: numbers[name] for name in names} for numbers in side] for side in rounds)
    _report(here, there, args.json)


def compare_decoding(args: argparse.Namespace) -> None:
    """Compare the sentences/s of every way of decoding, by precision and batch size."""
    flags = ["--model", args.model, "--input", args.input, "--reference", args.reference]
    flags += ["--batch-sizes", *args.batch_sizes, "--precisions", *args.precisions]
    flags += ["--sentences", args.sentences, "--threads", args.threads, "--repeats", args.repeats]
    # By its old name, which checkouts of before --json know as well.
    rounds = _measure_by_turns(args.against, "decode", flags, "--output", args.rounds)
    here, there = ([_decoding_speeds(report) for report in side] for side in rounds)
    _report(here, there, args.json)


def _decoding_speeds(report: Mapping[str, Any]) -> Numbers:
    speeds = {}
    for row in report["ways"]:
        for size, rate in row["sentences_per_s"].items():
            speeds[f"{row['name']}, {row['precision']}, batch {size}"] = rate
    return speeds


def _measure_by_turns(
    other: Path, command: str, flags: Sequence[object], json_flag: str, rounds: int
) -> tuple[list[Any], list[Any]]:
    """The JSON of each round, of this checkout and of the other one."""
    if rounds < 1:
        raise UserError(f"--rounds must be at least 1, but is {rounds}")
    # This one in a process, too: an import that is done already would be its advantage.
    checkouts = (THIS_CHECKOUT, other.resolve())
    for checkout in checkouts:
        if not (checkout / SCRIPT).is_file():
            raise UserError(f"--against: {checkout} is no checkout: it has no {SCRIPT}")
    results: tuple[list[Any], list[Any]] = ([], [])
    for number in range(1, rounds + 1):
        for checkout, results_of_checkout in zip(checkouts, results, strict=True):
            print(f"round {number} of {rounds}: {checkout}", file=sys.stderr, flush=True)
            results_of_checkout.append(_measure(checkout, command, flags, json_flag))
    return results


def _measure(checkout: Path, command: str, flags: Sequence[object], json_flag: str) -> Any:
    """Run a checkout's benchmark in a process of its own; returns its JSON."""
    # The checkout's package comes before an installed one.
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "numbers.json")
        arguments = [*map(str, flags), json_flag, str(path)]
        call = [sys.executable, str(checkout / SCRIPT), command, *arguments]
        done = subprocess.run(call, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{checkout / SCRIPT} {command} failed:\n{done.stderr.rstrip()}")
        return json.loads(path.read_text())


def _report(here: Sequence[Numbers], there: Sequence[Numbers], path: str | None) -> None:
    """Print the medians and their ratios, and write them if a file is given."""
    numbers = {}
    rows = []
    for name in here[0]:
        # A way of decoding that only one of the commits has cannot be compared.
        if name not in there[0]:
            continue
        ours = [result[name] for result in here]
        theirs = [result[name] for result in there]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        # Of the medians, not the median of the ratios: a slow round of one side does not count.
        ratio = median(ours) / median(theirs)
        numbers[name] = {"here": median(ours), "against": median(theirs), "ratio": ratio}
        each = " ".join(f"{r:.3f}" for r in ratios)
        rows.append([name, f"{median(ours):.4g}", f"{median(theirs):.4g}", f"{ratio:.3f}", each])
    print(format_table(rows, HEADERS, align="lr"))
    if path:
        write_json(path, numbers)
