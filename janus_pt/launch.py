"""Shared by the training commands: arguments, the launcher's environment, and what to run.

Until the configuration is read, nothing heavy is imported: a user's mistake is reported at once.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from janus_pt.checks import read_config
from janus_pt.config.schema import Config
from janus_pt.utils.errors import UserError
from janus_pt.utils.slurm import adopt_slurm


def world_size() -> int:
    """Processes of this job, from the launcher (deepspeed, torchrun, srun); 1 under plain `python`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is rank 0."""
    return os.environ.get("RANK", "0") == "0"


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pretrain` and `finetune`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="JSON file, or the name of a configuration of the package, as janus_tiny",
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
        help="do a step again that went wrong: a file of the folder `dumps` of the run",
    )
    parser.add_argument(
        "--profile",
        metavar="STEPS",
        help="trace these steps, as 11-13, into the folder `profile` of the run: one rank of each "
        "pipeline stage",
    )
    parser.add_argument(
        "--memory-snapshot",
        action="store_true",
        help="record a GPU's memory from the start to the end of --profile's steps, or of three",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="with --dry-run: plan for N processes"
    )
    # The deepspeed launcher passes this one; we read the environment instead.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def parse_steps(text: str) -> range:
    """The steps that `--profile` names: one, or the first and the last of several.

    Raises:
        UserError: the text names no steps.
    """
    first, _, last = text.partition("-")
    try:
        steps = range(int(first), int(last or first) + 1)
    except ValueError:
        steps = range(0)
    if not steps or steps[0] < 1:
        raise UserError(f"--profile takes a step or a range of steps, as 11-13, but is {text!r}")
    return steps


def run_process(arguments: argparse.Namespace) -> None:
    """Read and check the configuration, then do this process's part of what the arguments say."""
    # Under srun the world is Slurm's; DeepSpeed reads other variables.
    adopt_slurm()
    if arguments.world_size is not None and (not arguments.dry_run or arguments.world_size < 1):
        raise UserError(
            "--world-size is the number of processes, 1 or more, to plan for with --dry-run"
        )
    processes = intended_world_size(arguments)
    config = read_config(arguments.config, arguments.set, processes)
    run_training(config, arguments, processes)


def intended_world_size(arguments: argparse.Namespace) -> int:
    """The number of processes that the configuration is checked against.

    These are the processes that were started; in a dry run `--world-size`, or by default the next
    number that fits the layout, so that a cluster's layout can be planned on a laptop.
    """
    started = world_size()
    if arguments.world_size is not None:
        return int(arguments.world_size)
    if not arguments.dry_run:
        return started
    # Without a number of processes: the layout is not known yet, so it cannot be checked against one.
    multiple = read_config(arguments.config, arguments.set).parallel.model_parallel_size
    return math.ceil(started / multiple) * multiple


def run_training(config: Config, arguments: argparse.Namespace, processes: int) -> None:
    """Train, replay a step, or print the plan, as the arguments say."""
    traced = parse_steps(arguments.profile) if arguments.profile else range(0)
    # Imported here: torch, DeepSpeed and megatron-core take seconds.
    if arguments.replay is not None or not arguments.dry_run:
        import janus_pt.parallel.light_imports  # noqa: F401  before all else that imports the two
    if arguments.replay is not None:
        from janus_pt.train.replay import replay

        replay(config, Path(arguments.replay))
    elif not arguments.dry_run:
        from janus_pt.train.loop import train
        from janus_pt.train.report.instruments import Instruments

        folder = Path(config.run.output_dir)
        instruments = Instruments(traced, arguments.memory_snapshot, folder)
        train(config, resume=arguments.resume == "auto", instruments=instruments)
    elif is_first_rank():  # a plan needs no other rank
        from janus_pt.planning.plan import print_plan, runs_on_cpu

        is_this_job = processes == world_size()
        if not is_this_job:
            print(f"planned for {processes} processes, not for the {world_size()} started\n")
        # A layout planned for other processes is meant for a cluster with GPUs.
        print_plan(config, processes, on_cpu=is_this_job and runs_on_cpu())
