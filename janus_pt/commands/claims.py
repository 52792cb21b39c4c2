"""Put the paper's claims to the test: every objective at equal updates, decoded in every way, in one table.

  janus-pt claims --scale small --data multi30k --output claims --jobs 2

`--data` is a folder with {train,dev,test}.{src,tgt}; without it the pairs are of a made-up
language. A system is an objective, or a name with what is different in its training:

    --system ar --system janus --system janus-full objective.name=janus objective.masking.full_share=0.2
    --system janus-pretrained objective.name=janus run.init_from=runs/pretrain/export

The same command goes on where it was stopped; every training and every decoding is done once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from janus_pt.claims.data import Data, prepare_data
from janus_pt.claims.plan import (
    SCALES,
    check_seeds,
    common_changes,
    origin_of,
    parse_systems,
    plan_cells,
    plan_table,
)
from janus_pt.claims.recipes import DEFAULT_RECIPE, RECIPES
from janus_pt.config.exported import read_export_config
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import exclusive_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `claims`."""
    add = parser.add_argument
    add("--recipe", choices=RECIPES, help="gives --task, --scale, --system and the data")
    add("--scale", choices=SCALES, help="model, updates, seeds (default: tiny)")
    add("--output", type=Path, default=Path("claims"), help="folder for all (default: claims)")
    add("--task", help="row of janus_pt/tasks/table.py (default: nmt)")
    add("--data", metavar="FOLDER", help="the task's data; default: a made-up language")
    add("--splits", nargs=3, default=["train", "dev", "test"], metavar=("TRAIN", "DEV", "TEST"))
    add("--tokenizer", metavar="FILE", help="default: of run.init_from, else one is trained")
    add("--config", metavar="FILE", help="what all trainings share; default: the scale's")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change it")
    add(
        "--system",
        action="append",
        nargs="+",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="a system to compare; may be given several times (default: all objectives)",
    )
    add("--seeds", type=int, nargs="+", help="one training each (default: the scale's)")
    add(
        "--baseline",
        metavar="NAME",
        help="system that all are compared with; default: ar, and cmlm for mask-predict",
    )
    add("--jobs", type=int, default=1, help="cells at a time, a thread each (default: 1)")
    add("--dry-run", action="store_true", help="print what would be trained and decoded, and stop")


def run(args: argparse.Namespace) -> None:
    """Do what is left to do, and write the report."""
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, but is {args.jobs}")
    recipe = RECIPES[args.recipe] if args.recipe else DEFAULT_RECIPE
    scale = SCALES[args.scale or recipe.scale]
    systems = parse_systems(args.system or recipe.systems)
    names = [system.name for system in systems]
    if args.baseline and args.baseline not in names:
        raise UserError(
            f"--baseline: there is no system {args.baseline!r}, only {', '.join(names)}"
        )
    seeds = args.seeds or scale.seeds
    check_seeds(seeds)
    origin = origin_of(systems, args.set)
    tokenizer = args.tokenizer
    if tokenizer is None and origin is not None:
        tokenizer = f"{origin}/{read_export_config(origin).tokenizer_file}"
    task = args.task or recipe.task
    # Another task's data are not made by the recipe's command.
    prep = recipe.prep if task == recipe.task else None
    data = Data(task, args.output / "data", args.data, tuple(args.splits), prep)
    common = common_changes(args.output, data, tokenizer, origin) + args.set
    config = args.config or str(scale.config)
    cells = plan_cells(args.output, config, systems, seeds, common, data)
    if args.dry_run:
        print(plan_table(cells))
        return
    # Imported here: the help, the plan and mistakes need no torch.
    from janus_pt.claims.cells import train_and_decode
    from janus_pt.claims.report import write_report
    from janus_pt.claims.speed import measure_speed

    waiting = f"{args.output}: another call, or what it left running, is at work there; waiting"
    # One call at a time: two would train the same cell into the same folder.
    with exclusive_folder(args.output, waiting) as lock:
        prepare_data(data, tokenizer, cells[0].config.model)
        train_and_decode(cells, data, args.jobs, lock)
        # After all trainings, with nothing else running; other seeds are no faster or slower.
        first_seed = [cell for cell in cells if cell.seed == seeds[0]]
        speed = measure_speed(args.output, first_seed, data, scale)
        write_report(args.output, cells, data, speed, args.baseline)
