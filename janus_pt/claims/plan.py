"""What is compared: systems, scales, and the ways to decode that fit an objective."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_pt.claims.data import Data
from janus_pt.config.objectives import OBJECTIVES
from janus_pt.config.reader import read_config
from janus_pt.config.schema import Config
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError


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
    "full": Scale(SCALE_CONFIGS / "full.json", (1, 2, 3), 512, (1, 32, 256), 3),
}

LENGTHS = 3
"""Lengths that mask-predict tries."""
AR: dict[str, dict[str, Any]] = {
    "AR greedy": dict(mode="ar", num_beams=1),
    "AR beam 5": dict(mode="ar", num_beams=5),
}
NAR: dict[str, dict[str, Any]] = {
    "NAR 4 passes, 1 length": dict(mode="nar", iterations=4, length_beam=1),
    "NAR 4 passes": dict(mode="nar", iterations=4, length_beam=LENGTHS),
    "NAR 10 passes": dict(mode="nar", iterations=10, length_beam=LENGTHS),
}
RERANK: dict[str, dict[str, Any]] = {
    "rerank": dict(mode="rerank", iterations=10, length_beam=LENGTHS)
}
SPECULATIVE: dict[str, dict[str, Any]] = {"speculative": dict(mode="speculative")}
BANG_NAR: dict[str, dict[str, Any]] = {
    "NAR 1 pass, to eos": dict(mode="bang_nar", remove_repeats=True)
}
WAYS_OF_MODE: Mapping[str, dict[str, dict[str, Any]]] = {
    "ar": AR,
    "nar": NAR,
    "rerank": RERANK,
    "speculative": SPECULATIVE,
    "bang_nar": BANG_NAR,
}


def ways_of(objective: str) -> dict[str, dict[str, Any]]:
    """The ways to decode an objective's models, with their options."""
    row = OBJECTIVES[objective]
    ways = {}
    for mode in row.modes:
        for name, options in WAYS_OF_MODE[mode].items():
            ways[name] = {**options, **row.mode_options.get(mode, {})}
    return ways


DEFAULT_SYSTEMS = ("ar", "cmlm", "joint", "cmlmc", "janus")

COUNTERPART = {"rerank": "AR beam 5", "speculative": "AR greedy"}
"""What a way is compared with where the baseline does not have it."""


def last_given(key: str, changes: Sequence[str]) -> str | None:
    """What the last of the `KEY=VALUE` says that is about `key`; None if there is none."""
    given = [change.partition("=")[2] for change in changes if change.startswith(f"{key}=")]
    return given[-1] if given else None


@dataclass(frozen=True)
class System:
    """A name in the table, and how its training differs from the others': `changes` are `dotted.key=value`."""

    name: str
    changes: tuple[str, ...]

    @property
    def objective(self) -> str:
        """What it is trained on."""
        return last_given("objective.name", self.changes) or self.name

    @property
    def ways(self) -> dict[str, dict[str, Any]]:
        """How it can be decoded."""
        return ways_of(self.objective)


def origin_of(systems: Sequence[System], common: Sequence[str]) -> str | None:
    """The export that trainings start from: the first system's that has one, else that of all.

    Its shape and tokenizer are those of every system, so that they can be compared.

    Args:
        common: changes for all systems, `KEY=VALUE` each.
    """
    for changes in (*(system.changes for system in systems), common):
        origin = last_given("run.init_from", changes)
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
    """One training with what is decoded from it. `folder` holds all that is known of it."""

    system: System
    seed: int
    folder: Path
    config: Config

    @property
    def name(self) -> str:
        """Its name, with the seed."""
        return self.folder.name

    @property
    def run(self) -> Path:
        """The run folder of the training."""
        return Path(self.config.run.output_dir)


def parse_systems(given: Sequence[Sequence[str]]) -> list[System]:
    """Systems from `NAME KEY=VALUE …` each.

    Raises:
        UserError: a name twice or unfit for a folder, a change that is none, an objective that is not compared here.
    """
    systems = [
        System(name, tuple(changes))
        for name, *changes in given or [[name] for name in DEFAULT_SYSTEMS]
    ]
    for system in systems:
        if not system.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UserError(
                f"--system {system.name}: a name has letters, digits, '-', '_' and '.' only"
            )
        if wrong := [change for change in system.changes if "=" not in change]:
            raise UserError(
                f"--system {system.name}: {wrong[0]}: write it as KEY=VALUE, as in optimizer.lr=1e-3"
            )
        if system.objective not in OBJECTIVES:
            hint = f"set objective.name to one of: {', '.join(sorted(OBJECTIVES))}"
            raise UserError(
                f"--system {system.name}: there is no way here to decode {system.objective!r}; {hint}"
            )
    names = [system.name for system in systems]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"--system: {min(twice)} is given twice; give each system a name of its own"
        )
    return systems


def common_changes(
    output: Path, data: Data, tokenizer: str | None, origin: str | None
) -> list[str]:
    """What all systems change in the configuration: the data, where MLflow is, and the shape that `origin` has."""
    changes = [
        f"data.train.0.path={data.corpora / data.splits[0]}",
        f"data.valid={data.corpora / data.splits[1]}",
        f"tracking.uri=sqlite:///{output / 'mlflow.db'}",
    ]
    if origin is not None:
        from janus_pt.export.folder import read_export_config  # imports torch

        shape = read_export_config(origin).model.model_dump()
        changes += [
            f"model.{key}={json.dumps(value)}"
            for key, value in shape.items()
            if "dropout" not in key
        ]
    if tokenizer is not None:
        changes.append(f"model.vocab_size={Tokenizer.load(tokenizer).vocab_size}")
    return changes


def plan_cells(
    output: Path,
    config: str,
    systems: Sequence[System],
    seeds: Sequence[int],
    common: Sequence[str],
) -> list[Cell]:
    """The cells, seed by seed, each with its checked configuration; `common` are changes for all systems."""
    cells = []
    for seed in seeds:
        for system in systems:
            name = f"{system.name}-seed{seed}"
            own = [
                f"objective.name={system.objective}",
                f"run.seed={seed}",
                f"run.output_dir={output / 'runs' / name}",
            ]
            found = read_config(config, [*common, *own, *system.changes], world_size=1)
            cells.append(Cell(system, seed, output / "cells" / name, found))
    return cells
