"""The plan of a comparison: scales, systems, and their cells."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_pt.checks import read_config
from janus_pt.claims.data import Data
from janus_pt.claims.ways import Ways, ways_of
from janus_pt.config.exported import read_export_config
from janus_pt.config.objectives import OBJECTIVES
from janus_pt.config.schema import Config
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.tables import format_table


@dataclass(frozen=True)
class Scale:
    """How large a comparison is.

    Attributes:
        config: file of the configuration that all trainings share.
        seeds: seeds of the trainings.
        timed: sentences of the test set that are timed.
        batch_sizes: how many of them are decoded together.
        repeats: of so many timings the best counts.
    """

    config: Path
    seeds: tuple[int, ...]
    timed: int
    batch_sizes: tuple[int, ...]
    repeats: int


# The configurations are files of the package: an installed one has no repository beside it.
SCALE_CONFIGS = Path(__file__).parent / "scales"
SCALES: Mapping[str, Scale] = {
    "tiny": Scale(SCALE_CONFIGS / "tiny.json", (1,), 8, (1, 8), 1),
    "small": Scale(SCALE_CONFIGS / "small.json", (1, 2), 64, (1, 16, 64), 2),
    "g2p": Scale(SCALE_CONFIGS / "g2p.json", (1, 2, 3), 200, (1, 64), 2),
    "full": Scale(SCALE_CONFIGS / "full.json", (1, 2, 3), 512, (1, 32, 256), 3),
}

SYSTEM_NAME = re.compile(r"[\w.-]*[^\W_][\w.-]*")
"""A name names a folder, too."""


def last_value(key: str, changes: Sequence[str]) -> str | None:
    """The value of the last `KEY=VALUE` for this key, which is the one that counts; else None."""
    values = [change.partition("=")[2] for change in changes if change.startswith(f"{key}=")]
    return values[-1] if values else None


@dataclass(frozen=True)
class System:
    """A name in the table, and how its training differs from the others'.

    Attributes:
        changes: `dotted.key=value` each.
    """

    name: str
    changes: tuple[str, ...]

    @property
    def objective(self) -> str:
        """The objective that is trained: by default the name's."""
        return last_value("objective.name", self.changes) or self.name

    @property
    def ways(self) -> Ways:
        """The ways to decode it."""
        return ways_of(self.objective)


def origin_of(systems: Sequence[System], common: Sequence[str]) -> str | None:
    """The export that trainings start from: the first system's that has one, else the common one.

    Every system has its shape and tokenizer, so that they can be compared.

    Args:
        common: changes for all systems, `KEY=VALUE` each.
    """
    for changes in (*(system.changes for system in systems), common):
        origin = last_value("run.init_from", changes)
        if origin:
            return origin
    return None


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise `UserError` if a seed is given twice: its cells would have one folder."""
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise UserError(f"--seeds: {seed} is given twice")


@dataclass(frozen=True)
class Cell:
    """One training with its decodings.

    Attributes:
        folder: gets the configuration, the logs and the results.
    """

    system: System
    seed: int
    folder: Path
    config: Config

    @property
    def name(self) -> str:
        """The system's name and the seed."""
        return self.folder.name

    @property
    def run(self) -> Path:
        """The run folder of the training."""
        return Path(self.config.run.output_dir)


def parse_systems(arguments: Sequence[Sequence[str]]) -> list[System]:
    """Systems from `NAME KEY=VALUE …` each.

    Raises:
        UserError: a name is given twice or is unfit for a folder, a change is not `KEY=VALUE`, or
            there is no such objective.
    """
    systems: dict[str, System] = {}
    for name, *changes in arguments:
        system = System(name, tuple(changes))
        _check_system(system)
        if name in systems:
            raise UserError(f"--system: {name} is given twice; give each system a name of its own")
        systems[name] = system
    return list(systems.values())


def _check_system(system: System) -> None:
    if not SYSTEM_NAME.fullmatch(system.name):
        raise UserError(
            f"--system {system.name}: a name has letters, digits, '-', '_' and '.' only"
        )
    for change in system.changes:
        if "=" not in change:
            raise UserError(
                f"--system {system.name}: {change}: write it as KEY=VALUE, as in optimizer.lr=1e-3"
            )
    if system.objective not in OBJECTIVES:
        raise UserError(
            f"--system {system.name}: there is no way here to decode {system.objective!r}; set "
            f"objective.name to one of: {', '.join(sorted(OBJECTIVES))}"
        )


def common_changes(
    output: Path, data: Data, tokenizer: str | None, origin: str | None
) -> list[str]:
    """Changes of the configuration for all systems, `KEY=VALUE` each.

    Args:
        tokenizer: file of the tokenizer, whose vocabulary the models have.
        origin: export whose shape all models have, so that it can be compared with.
    """
    changes = [
        f"data.train.0.path={data.corpora / data.splits[0]}",
        f"data.valid={data.corpora / data.splits[1]}",
        f"tracking.uri=sqlite:///{output / 'mlflow.db'}",
    ]
    if origin is not None:
        shape = read_export_config(origin).model.model_dump()
        for key, value in shape.items():
            # Dropout is a setting of the training, not of the shape.
            if "dropout" not in key:
                changes.append(f"model.{key}={json.dumps(value)}")
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
        changes.append(f"model.vocab_size={loaded.vocab_size}")
        changes += [f"model.{name}={value}" for name, value in loaded.model_ids.items()]
    return changes


def validation_changes(data: Data, mode: str) -> list[str]:
    """Changes of the section `validation`, `KEY=VALUE` each: the comparison's data, in `mode`."""
    values = {"task": data.task, "data": data.folder, "split": data.splits[1], "mode": mode}
    return [f"validation.{key}={value}" for key, value in values.items()]


def plan_cells(
    output: Path,
    config: str,
    systems: Sequence[System],
    seeds: Sequence[int],
    common: Sequence[str],
    data: Data,
) -> list[Cell]:
    """The cells, seed by seed, each with its checked configuration.

    Args:
        output: folder of the comparison.
        config: file of the configuration that all share.
        common: changes for all systems.
        data: what a configuration with a section `validation` decodes, in the system's first mode.
    """
    validates = read_config(config, common, world_size=1).validation is not None
    cells = []
    for seed in seeds:
        # All systems of a seed before the next seed: a comparison is whole as early as possible.
        for system in systems:
            name = f"{system.name}-seed{seed}"
            changes_of_cell = [
                f"objective.name={system.objective}",
                f"run.seed={seed}",
                f"run.output_dir={output / 'runs' / name}",
            ]
            if validates:
                first_mode = OBJECTIVES[system.objective].modes[0]
                changes_of_cell += validation_changes(data, first_mode)
            # The last change of a key counts: a system may overrule what all share.
            changes = [*common, *changes_of_cell, *system.changes]
            cell_config = read_config(config, changes, world_size=1)
            cells.append(Cell(system, seed, output / "cells" / name, cell_config))
    return cells


def plan_table(cells: Sequence[Cell]) -> str:
    """What will be trained and decoded, a row a cell."""
    rows = []
    for cell in cells:
        updates = f"{cell.config.run.max_steps:,}"
        ways = "; ".join(cell.system.ways)
        rows.append([cell.name, cell.system.objective, updates, ways])
    return format_table(rows, ("cell", "objective", "updates", "decoded by"), align="llrl")
