"""Checkpoints: written under another name, listed with their hashes, renamed; `latest` last.

A folder `checkpoints/step_N/` holds DeepSpeed's files, `state.json` (ours), `config.json` and `files.json` (size and
sha256 of all the others). DeepSpeed's files are pickles: they are read only if the hashes agree. They fit the layout
that wrote them; for another one they are converted to `checkpoints/universal_N/` first (`universal.py`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.checkpoint import universal
from janus_pt.checkpoint.layout import Layout, describe
from janus_pt.parallel.engine import Engine
from janus_pt.utils.errors import UserError, warn
from janus_pt.utils.files import file_hash, staged_folder, sync, write_atomically

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run folder."""
LATEST, STATE, FILES = "latest", "state.json", "files.json"


def find(folder: Path, quick: bool = False, before_step: int | None = None) -> Path | None:
    """The checkpoint to go on from: the one that `latest` names, or, if that is damaged, the newest whole one.

    What is passed over is told. All ranks take part, each checking a part of the files. None if there is none.

    Args:
        quick: compare the sizes of the files only, not their hashes.
        before_step: only those of earlier steps, the newest first, whatever `latest` says.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    names: list[Any] = [None]
    if dist.get_rank() == 0:
        earlier = [
            f"step_{step}"
            for step in reversed(steps_in(folder))
            if before_step and step < before_step
        ]
        names = [earlier if before_step else _candidates(folder)]
    dist.broadcast_object_list(names, src=0)
    problems: list[str] = []
    for name in names[0]:
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(
            found, verify(folder / name, quick, dist.get_rank(), dist.get_world_size())
        )
        problem = next((problem for problem in found if problem), None)
        if problem is None:
            for passed_over in problems:
                warn(f"{passed_over}; going on from {folder / name} instead")
            return folder / name
        problems.append(problem)
    if problems:
        raise UserError(
            f"no checkpoint in {folder} is whole: {'; '.join(problems)}; restore one, or start a new run"
        )
    return None


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, whole or not, in ascending order."""
    numbers = (path.name.removeprefix("step_") for path in folder.glob("step_*"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def best_of(state: Mapping[str, Any]) -> list[dict[str, float]]:
    """The best validations up to a checkpoint, from its state: the best first, each with its step."""
    best = state["best"]
    return (
        best if isinstance(best, list) else [best] * bool(best)
    )  # older states have the best one alone


def _candidates(folder: Path) -> list[str]:
    """Names of the checkpoints there are, in the order in which to try them."""
    names = [f"step_{step}" for step in reversed(steps_in(folder))]
    try:
        named = (folder / LATEST).read_text().strip()
    except (OSError, ValueError):
        named = ""
    if named and "/" not in named:
        return [named, *(name for name in names if name != named)]
    if names:
        warn(
            f"{folder / LATEST}: missing or broken; going by the names of the folders, {names[0]} first"
        )
    return names


def load(engine: Engine, path: Path, layout: Layout) -> dict[str, Any]:
    """Load a checkpoint that `find` has found into the engine and return its state.

    One of another layout is converted, which is said. All ranks take part.

    Raises:
        UserError: the checkpoint cannot be converted.
    """
    found: list[Any] = [None, None, None]
    if dist.get_rank() == 0:
        found = list(_fitting(path, layout))
    dist.broadcast_object_list(found, src=0)
    fitting, state, problem = found
    if problem is not None:
        raise UserError(problem)
    strict = all(
        parameter.requires_grad for parameter in engine.module.parameters()
    )  # frozen ones are not in it
    if universal.is_universal(fitting):
        universal.load(engine, fitting, state["step"])
    elif (
        engine.load_checkpoint(str(fitting.parent), tag=fitting.name, load_module_strict=strict)[0]
        is None
    ):
        raise UserError(f"{fitting}: DeepSpeed found no checkpoint for this layout there")
    return dict(state)


def _fitting(path: Path, layout: Layout) -> tuple[Path | None, dict[str, Any] | None, str | None]:
    """The checkpoint in a form that this layout can load, and its state; or why there is none."""
    state = json.loads((path / STATE).read_text())
    if state["layout"] == layout or universal.is_universal(path):
        return path, state, None
    told = f"{path} was written on {describe(state['layout'])}, this run is {describe(layout)}"
    print(f"{told}: converting the checkpoint", file=sys.stderr, flush=True)
    try:
        return convert(path), state, None
    except UserError as error:
        return None, None, str(error)


def convert(checkpoint: Path, target: Path | None = None, workers: int = 1) -> Path:
    """Write a checkpoint in the form that any layout can load; its folder is returned. Not for several ranks.

    By default that is `universal_N` beside `step_N`; a whole one that is there already is taken.

    Raises:
        UserError: the checkpoint is damaged, or of a layout that cannot be converted.
    """
    problem = verify(checkpoint)
    if problem is not None:
        raise UserError(problem)
    if universal.is_universal(checkpoint):
        return checkpoint
    target = target or checkpoint.with_name(checkpoint.name.replace("step_", "universal_"))
    if (target / FILES).exists() and verify(target) is None:
        return target
    state = json.loads((checkpoint / STATE).read_text())
    with staged_folder(target) as staging:
        universal.write(checkpoint, staging, state["layout"], workers)
        for name in (STATE, "config.json"):
            shutil.copy(checkpoint / name, staging / name)
        seal(staging)
    return target


def verify(checkpoint: Path, quick: bool = False, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, or None.

    Args:
        quick: compare sizes only.
        part, parts: look at every `parts`-th file only, from number `part` on.
    """
    try:
        listed = json.loads((checkpoint / FILES).read_text())
        there = {
            str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()
        } - {FILES}
        if foreign := sorted(there - set(listed)):
            return f"{checkpoint / foreign[0]}: not a file of this checkpoint"
        for name, expected in sorted(listed.items())[part::parts]:
            path = checkpoint / name
            if name not in there or path.stat().st_size != expected["bytes"]:
                return f"{path}: missing or cut short"
            if not quick and file_hash(path) != expected["sha256"]:
                return f"{path}: damaged, its content is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{checkpoint}: {FILES} is missing or broken, the checkpoint is incomplete"
    return None


def seal(folder: Path) -> None:
    """List the folder's files with their hashes; everything is on disk when this returns."""
    listed = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync(path)
        listed[str(path.relative_to(folder))] = {
            "bytes": path.stat().st_size,
            "sha256": file_hash(path),
        }
    write_atomically(folder / FILES, json.dumps(listed, indent=1))
