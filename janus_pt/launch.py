"""What the training launchers share: arguments, and what the environment says before anything heavy is imported."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from janus_pt.config.reader import read_config
from janus_pt.config.schema import Config


def world_size() -> int:
    """Processes of this job, as the launcher (deepspeed, torchrun, srun) says; 1 under plain `python`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is rank 0."""
    return os.environ.get("RANK", "0") == "0"


def parse_training_arguments(
    description: str | None, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Arguments of `launchers/pretrain.py` and `launchers/finetune.py`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, help="JSON file; its sections: docs/architecture.md"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the file"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="never",
        help="auto: go on from the run folder's last checkpoint",
    )
    parser.add_argument(
        "--replay",
        metavar="DUMP",
        help="do a step again that went wrong: a file of the run's dumps",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="with --dry-run: plan for N processes"
    )
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # the deepspeed launcher gives it
    arguments = parser.parse_args(argv)
    if arguments.world_size is not None and (not arguments.dry_run or arguments.world_size < 1):
        parser.error(
            "--world-size is the number of processes, 1 or more, to plan for with --dry-run"
        )
    return arguments


def intended_world_size(arguments: argparse.Namespace) -> int:
    """The processes a configuration is read for: those started, or in a dry run `--world-size`.

    A dry run of a layout that does not fit the processes started is for the next number that fits.
    """
    started = world_size()
    if not arguments.dry_run or arguments.world_size:
        return arguments.world_size or started
    multiple = read_config(arguments.config, arguments.set).parallel.model_parallel_size
    return -(-started // multiple) * multiple


def run_training(config: Config, arguments: argparse.Namespace, processes: int) -> None:
    """Train as `parse_training_arguments` says. What takes seconds to import comes after the configuration's check."""
    if arguments.replay is not None:
        from janus_pt.train.replay import replay

        replay(config, Path(arguments.replay))
    elif not arguments.dry_run:
        from janus_pt.train.loop import train

        train(config, resume=arguments.resume == "auto")
    elif is_first_rank():
        from janus_pt.planning.plan import print_plan, runs_on_cpu

        here = processes == world_size()
        if not here:
            print(f"planned for {processes} processes, not for the {world_size()} started\n")
        print_plan(config, processes, on_cpu=here and runs_on_cpu())
