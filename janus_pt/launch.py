"""What the training launchers share: arguments, and what the environment says before anything heavy is imported."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from janus_pt.config import Config


def world_size() -> int:
    """Processes of this job, as the launcher (deepspeed, torchrun, srun) says; 1 under plain `python`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is rank 0."""
    return os.environ.get("RANK", "0") == "0"


def parse_training_arguments(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of `launchers/pretrain.py` and `launchers/finetune.py`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="JSON file; its sections: docs/architecture.md")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the file")
    parser.add_argument(
        "--resume", choices=("auto", "never"), default="never", help="auto: go on from the run folder's last checkpoint"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher gives it
    return parser.parse_args(argv)


def run_training(config: Config, arguments: argparse.Namespace) -> None:
    """Train as `parse_training_arguments` says. What takes seconds to import comes after the configuration's check."""
    if arguments.dry_run:
        from janus_pt.train.plan import print_plan

        print_plan(config, world_size())
    else:
        from janus_pt.train.loop import train

        train(config, resume=arguments.resume == "auto")
