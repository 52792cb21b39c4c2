"""What `pretrain` and `finetune` share: one process, or several that DeepSpeed's launcher starts."""

from __future__ import annotations

import argparse
import os
import sys

from janus_pt.launch import add_training_arguments, run_process
from janus_pt.utils.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of both commands."""
    add_training_arguments(parser)
    group = parser.add_argument_group("several processes, started by DeepSpeed's launcher")
    group.add_argument("--num-gpus", type=int, metavar="N", help="processes of a node")
    group.add_argument("--hostfile", metavar="FILE", help="a line 'HOST slots=N' for each node")
    group.add_argument("--master-port", type=int, metavar="PORT", help="where the ranks meet")
    # DeepSpeed's own spelling, which its users know.
    for alias in ("--num_gpus", "--num_accelerators"):
        group.add_argument(alias, dest="num_gpus", type=int, help=argparse.SUPPRESS)
    group.add_argument("--master_port", dest="master_port", type=int, help=argparse.SUPPRESS)


def train(command: str, args: argparse.Namespace) -> None:
    """Train in this process, or in the processes that the flags ask for; or print the plan.

    Args:
        command: name of the command, which the processes run.

    Raises:
        UserError: no process is asked for, or several with --dry-run.
    """
    flags = _launcher_flags(args)
    if not flags:
        run_process(args)
        return
    if args.num_gpus is not None and args.num_gpus < 1:
        raise UserError(f"--num-gpus must be at least 1, but is {args.num_gpus}")
    if args.dry_run:
        raise UserError("--dry-run plans in one process; give the number to plan for: --world-size")
    # The ranks get their number by the environment, not by --local_rank.
    module = ("--module", "--no_local_rank", "janus_pt")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *flags, *module]
    # In place of this process: signals and exit code are the launcher's.
    os.execv(sys.executable, [*launcher, command, *_training_flags(args)])


def _launcher_flags(args: argparse.Namespace) -> list[str]:
    values = {
        "--num_gpus": args.num_gpus,
        "--hostfile": args.hostfile,
        "--master_port": args.master_port,
    }
    return [f"{flag}={value}" for flag, value in values.items() if value is not None]


def _training_flags(args: argparse.Namespace) -> list[str]:
    """The flags of `add_training_arguments` as the user gave them."""
    flags = [f"--config={args.config}", f"--resume={args.resume}"]
    flags += [f"--set={change}" for change in args.set]
    if args.replay is not None:
        flags.append(f"--replay={args.replay}")
    return flags
