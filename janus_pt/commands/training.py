"""What `pretrain` and `finetune` share: one process, or several that DeepSpeed's launcher starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

from janus_pt.launch import add_training_arguments, run_process
from janus_pt.utils.errors import UserError

LAUNCHER_OPTIONS = ("num_gpus", "hostfile", "master_port")
"""Flags for DeepSpeed's launcher, by its names; all others go to the processes."""


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
    values = dict(vars(args))
    launcher_flags = _as_flags({f"--{name}": values.pop(name) for name in LAUNCHER_OPTIONS})
    if not launcher_flags:
        run_process(args)
        return
    if args.num_gpus is not None and args.num_gpus < 1:
        raise UserError(f"--num-gpus must be at least 1, but is {args.num_gpus}")
    if args.dry_run or args.world_size is not None:
        raise UserError(
            "--dry-run and --world-size plan in one process: remove the launcher's flags"
        )
    # The ranks get their number by the environment, not by --local_rank.
    module = ("--module", "--no_local_rank", "janus_pt")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *launcher_flags, *module]
    own_flags = _as_flags({f"--{name.replace('_', '-')}": values[name] for name in values})
    # In place of this process: signals and exit code are the launcher's.
    os.execv(sys.executable, [*launcher, command, *own_flags])


def _as_flags(values: Mapping[str, Any]) -> list[str]:
    """The command line of flags with these values; None and False: the flag was not given."""
    flags = []
    for flag, value in values.items():
        if value is True:
            flags.append(flag)
        elif isinstance(value, list):
            flags += [f"{flag}={item}" for item in value]
        elif value is not None and value is not False:
            flags.append(f"{flag}={value}")
    return flags
