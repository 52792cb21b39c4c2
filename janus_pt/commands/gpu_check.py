"""Check a GPU, or all of a node, and measure it: parity, layouts, transfers, resume, attention, speed.

  all GPUs of this node:  janus-pt gpu-check
  one of them:            janus-pt gpu-check --gpus 1
  one group of checks:    janus-pt gpu-check --only speed
  without a GPU:          janus-pt gpu-check --device cpu

Writes one JSON file and one page, named by the GPU, and traces. Each check runs in processes of its
own; one that fails stops no other. Exit code 1 if one failed or could not be compared. It needs no
corpus, and is meant for ten minutes, which no GPU has tried yet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from janus_pt.utils.errors import UserError

GROUPS = ("parity", "attention", "transfers", "layouts", "resume", "speed")
EXIT_FAILED = 1
CPU_RANKS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gpu-check`."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/benchmarks"),
        help="folder for the two files and the traces (default: %(default)s)",
    )
    parser.add_argument(
        "--only", choices=GROUPS, action="append", help="a group of checks; may be given again"
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="of this node (default: all)")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the checks, print each result as it comes, and write both files.

    Raises:
        UserError: there are not that many GPUs, or the folder cannot be made.
        SystemExit: with 1 if a check failed or could not be compared.
    """
    # Imported here: torch takes seconds.
    from janus_pt.benchmark.gpu_check.report import machine, write_report
    from janus_pt.benchmark.gpu_check.run import run_checks

    ranks = _count_devices(args)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output}: cannot be made: {error.strerror}") from None
    outcomes = run_checks(args.device, ranks, args.only or GROUPS, args.output)
    paths = write_report(args.output, machine(args.device, ranks), outcomes)
    print(f"written: {', '.join(map(str, paths))}")
    if any(result.status not in ("passed", "skipped") for _, result in outcomes):
        raise SystemExit(EXIT_FAILED)


def _count_devices(args: argparse.Namespace) -> int:
    import torch

    if args.device == "cpu":
        available = CPU_RANKS
    else:
        available = torch.cuda.device_count()
        if not available:
            raise UserError("no GPU is visible to torch here: give --device cpu to try the checks")
    if args.gpus is not None and not 1 <= args.gpus <= available:
        raise UserError(f"--gpus must be from 1 to {available}, but is {args.gpus}")
    return args.gpus or available
