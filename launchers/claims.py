"""Put the paper's claims to the test: every objective at equal updates, decoded in every way, in one table.

    python launchers/claims.py --scale small --data multi30k --output claims --jobs 2

`--data` holds {train,dev,test}.{src,tgt}; without it the pairs are of a made-up language. A system is an
objective, or a name with what is different in its training:

    --system ar --system janus --system janus-full objective.name=janus objective.masking.full_share=0.2
    --system janus-pretrained objective.name=janus run.init_from=runs/pretrain/export

The same command goes on where it was stopped; every training and every decoding is done once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from janus_pt.claims.cells import measure_speed, train_and_decode
from janus_pt.claims.data import ROOT, Data, prepare_data
from janus_pt.claims.plan import SCALES, common_changes, last_given, parse_systems, plan_cells
from janus_pt.claims.report import write_report
from janus_pt.utils.errors import UserError, entry_point
from janus_pt.utils.files import exclusive_folder


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--scale",
        choices=SCALES,
        default="tiny",
        help="model, updates, seeds (default: %(default)s)",
    )
    add(
        "--output",
        type=Path,
        default=Path("claims"),
        help="folder for everything (default: %(default)s)",
    )
    add("--task", default="nmt", help="row of janus_pt/tasks/table.py (default: %(default)s)")
    add("--data", metavar="FOLDER", help="the task's data")
    add("--splits", nargs=3, default=["train", "dev", "test"], metavar=("TRAIN", "DEV", "TEST"))
    add(
        "--tokenizer", metavar="FILE", help="default: the one of run.init_from, else one is trained"
    )
    add("--config", metavar="FILE", help="what all trainings share, in place of the scale's")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change it")
    add(
        "--system",
        action="append",
        nargs="+",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="default: all",
    )
    add("--seeds", type=int, nargs="+", help="default: the scale's")
    add(
        "--baseline",
        metavar="NAME",
        help="system that all are compared with; default: ar, and cmlm for mask-predict",
    )
    add("--jobs", type=int, default=1, help="cells at a time, a thread each (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Do what is left to do, and write the report."""
    given = parse()
    if given.jobs < 1:
        raise UserError(f"--jobs must be at least 1, but is {given.jobs}")
    scale, systems = SCALES[given.scale], parse_systems(given.system)
    if given.baseline and given.baseline not in (names := [system.name for system in systems]):
        raise UserError(
            f"--baseline: there is no system {given.baseline!r}, only {', '.join(names)}"
        )
    config = given.config or str(ROOT / scale.config)
    origins = (
        last_given("run.init_from", changes)
        for changes in (*(s.changes for s in systems), given.set)
    )
    origin, seeds = next(filter(None, origins), None), given.seeds or scale.seeds
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UserError(f"--seeds: {twice[0]} is given twice")
    waiting = (
        f"{given.output}: another call, or what it left running, is at work there; waiting for it"
    )
    with exclusive_folder(given.output, waiting) as lock:
        tokenizer = given.tokenizer or (f"{origin}/tokenizer.model" if origin else None)
        data = Data(given.task, given.output / "data", given.data, tuple(given.splits))
        common = [*common_changes(given.output, data, tokenizer, origin), *given.set]
        cells = plan_cells(given.output, config, systems, seeds, common)
        prepare_data(data, tokenizer, cells[0].config.model.vocab_size)
        train_and_decode(cells, data, given.jobs, lock)
        speed = measure_speed(
            given.output, [cell for cell in cells if cell.seed == seeds[0]], data, scale
        )
        write_report(given.output, cells, data, speed, given.baseline)


if __name__ == "__main__":
    entry_point(main)
