"""Build a corpus from crawled text or mined pairs: read, clean, remove duplicates and test sets, write shards.

    janus-pt prep corpus --config english_web.json --dry-run
    janus-pt prep corpus --config english_web.json --tasks 64 --workers 8
    janus-pt prep corpus --config english_web.json --tasks 2000 --workers 500 --executor slurm

The same command continues a build that was killed, and does failed tasks again. The bytes written depend on the number
of tasks, and not on workers, executor or interruptions. Needs: pip install 'janus_pt[corpora]'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from janus_pt.config.reader import read_section
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig, problems
from janus_pt.utils.errors import UserError
from janus_pt.utils.extras import require
from janus_pt.utils.processes import available_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep corpus`."""
    add = parser.add_argument
    add(
        "--config",
        required=True,
        metavar="FILE",
        help="JSON file, or a name: corpora/english_web, corpora/german_english_pairs",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the configuration, as in shards.max_tokens=254; repeatable",
    )
    add(
        "--executor",
        choices=["local", "slurm", "ray"],
        default="local",
        help="where tasks run: here, as job arrays of Slurm, on a Ray cluster (default: %(default)s)",
    )
    add(
        "--tasks",
        type=int,
        help="parts of the work, fixed once a build has begun (default: as it was begun, else `tasks`)",
    )
    add("--workers", type=int, help="tasks at a time (local: all cores; else: all tasks)")
    add(
        "--dry-run",
        action="store_true",
        help="print stages, disk and time, estimated from a sample",
    )
    add("--overwrite", action="store_true", help="remove the build in the folders and build anew")


def run(args: argparse.Namespace) -> None:
    """Run the build, or submit it. `UserError` for a wrong configuration, bad input or failed tasks."""
    require("datatrove.executor", "corpora")
    config = read_section(args.config, args.set, CorpusBuildConfig, problems)
    # datatrove takes a second to import, and a wrong configuration should not.
    from janus_pt.data_prep.pipeline import dry_run, executors, state

    tasks = args.tasks
    if tasks is None and not args.overwrite:
        tasks = state.remembered_tasks(config)
    if tasks is not None:
        config = config.model_copy(update={"tasks": tasks})
    default_workers = available_cores() if args.executor == "local" else config.tasks
    workers = args.workers or default_workers
    for flag, value in (("--tasks", config.tasks), ("--workers", workers)):
        if value < 1:
            raise UserError(f"{flag} must be at least 1, not {value}")
    if args.dry_run:
        print(dry_run.dry_run(config, workers))
        return
    with state.held(config):
        state.begin(config, args.overwrite)
        if args.executor == "slurm":
            for stage, job in executors.submit_slurm(config, workers):
                print(f"{stage}: {job}")
            print(f"the corpus is finished when {Path(config.output) / 'manifest.json'} is there")
            return
        if args.executor == "ray":
            executors.run_ray(config, workers)
        else:
            executors.run_local(config, workers)
    _print_result(config)


def _print_result(config: CorpusBuildConfig) -> None:
    from janus_pt.data.manifest import read_manifest

    manifest = read_manifest(config.output)
    tokens = ", ".join(f"{count:,} {name} tokens" for name, count in manifest.tokens.items())
    print(f"{config.output}: {manifest.samples:,} samples, {tokens}, {len(manifest.shards)} shards")
    print(f"what was removed, and samples of it: {Path(config.output) / 'report.html'}")
