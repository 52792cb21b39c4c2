"""Ways to spread a configuration over a cluster, the fastest first.

Nothing is measured: `janus_pt/planning/layouts.py` has the formulas.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from janus_pt.checks import read_config
from janus_pt.config.schema import Config
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.planning.layouts import fastest, steps, table
from janus_pt.planning.plan import sample_length
from janus_pt.utils.commands import add_json_flag
from janus_pt.utils.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `benchmark.py layouts`."""
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the file"
    )
    parser.add_argument("--world-size", type=int, default=64, help="GPUs")
    parser.add_argument("--length", type=int, help="tokens of a sample; else as `--dry-run` has it")
    parser.add_argument("--best", type=int, default=8, help="how many to show")
    add_json_flag(parser, "file for the layouts")


def run(args: argparse.Namespace) -> None:
    """Compare and print."""

    def read(changes: Sequence[str], world_size: int | None) -> Config:
        return read_config(args.config, [*args.set, *changes], world_size)

    config = read([], None)
    length = args.length or sample_length(config.data, config.model.longest_sample)
    sizes = sample_sizes(config.model, config.objective, length)
    best = fastest(steps(read, args.world_size, sizes))[: args.best]
    if not best:
        batch = f"{config.data.global_batch_size:,} {config.data.batch_unit}"
        raise UserError(
            f"{args.config}: no layout of {args.world_size} GPUs has the memory and shares a step "
            f"of {batch} evenly: change the number of GPUs or data.global_batch_size"
        )
    print(table(best))
    if args.json:
        text = json.dumps([asdict(step) for step in best], indent=1)
        Path(args.json).write_text(text + "\n")
