"""Checkpoints: written under another name, listed with their hashes, renamed; `latest` last.

A folder `checkpoints/step_N/` holds DeepSpeed's files, `state.json` (ours), `config.json` and `files.json` (size and
sha256 of all the others). DeepSpeed's files are pickles: they are read only if the hashes agree. They fit the layout
that wrote them; for another one they are converted to `checkpoints/universal_N/` first (`universal.py`).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.config import Config
from janus_pt.data.index import tokenizer_file
from janus_pt.errors import UserError
from janus_pt.export import save_export
from janus_pt.files import file_hash, sync, write_atomically
from janus_pt.train import universal
from janus_pt.train.layout import Layout, describe

LATEST, STATE, FILES = "latest", "state.json", "files.json"


def save(engine: Any, folder: Path, step: int, state: dict[str, Any], config_json: str) -> Path:
    """Write the checkpoint of `step` and make it the latest; all ranks take part."""
    staging, final = folder / f".step_{step}.partial", folder / f"step_{step}"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    dist.barrier()
    info = universal.info(engine.module.model)
    engine.save_checkpoint(str(folder), tag=staging.name, client_state=info, save_latest=False)
    dist.barrier()
    if first:
        (staging / STATE).write_text(json.dumps(state, indent=1))
        (staging / "config.json").write_text(config_json)
        seal(staging)
        put_in_place(staging, final)
        write_atomically(folder / LATEST, final.name)
    dist.barrier()
    return final


def load(engine: Any, folder: Path, layout: Layout) -> dict[str, Any] | None:
    """Load the latest checkpoint into the engine and return its state, or None if there is none.

    One of another layout is converted, which is said. All ranks take part.

    Raises:
        UserError: the checkpoint is damaged or incomplete, or cannot be converted.
    """
    found: list[Any] = [None, None, None]
    if dist.get_rank() == 0:
        found = list(_find(folder, layout))
    dist.broadcast_object_list(found, src=0)
    path, state, problem = found
    if problem is not None:
        raise UserError(problem)
    if path is None:
        return None
    if universal.is_universal(path):
        universal.load(engine, path, state["step"])
    elif engine.load_checkpoint(str(path.parent), tag=path.name)[0] is None:
        raise UserError(f"{path}: DeepSpeed found no checkpoint for this layout there")
    return dict(state)


def _find(folder: Path, layout: Layout) -> tuple[Path | None, dict[str, Any] | None, str | None]:
    """The checkpoint to load and its state, or what is wrong with it; converted if need be."""
    latest = folder / LATEST
    if not latest.is_file():
        return None, None, None
    path = folder / latest.read_text().strip()
    problem = verify(path)
    if problem is not None:
        return None, None, problem
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
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        universal.write(checkpoint, staging, state["layout"], workers)
        for name in (STATE, "config.json"):
            shutil.copy(checkpoint / name, staging / name)
        seal(staging)
        put_in_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def export(checkpoint: Path, target: Path, tokenizer: Path | None = None) -> Path:
    """Export the model of a checkpoint, weight by weight; `target` is returned. Not for several ranks.

    Args:
        tokenizer: default: that of the corpus the run was trained on.

    Raises:
        UserError: the checkpoint is damaged or cannot be converted, or its tokenizer is not there.
    """
    whole = convert(checkpoint)
    config = Config.model_validate_json((checkpoint / "config.json").read_text())
    save_export(target, universal.weights(whole, config.model), config.model, tokenizer or tokenizer_file(config.data))
    return target


def verify(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    advice = f"put the name of an older folder of {checkpoint.parent} into `latest` to go on from there"
    try:
        listed = json.loads((checkpoint / FILES).read_text())
    except (OSError, ValueError):
        return f"{checkpoint}: {FILES} is missing or broken, the checkpoint is incomplete; {advice}"
    for name, expected in listed.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            return f"{path}: missing or cut short; {advice}"
        if file_hash(path) != expected["sha256"]:
            return f"{path}: damaged, its content is not what was written; {advice}"
    return None


def prune(folder: Path, keep_last: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep_last` and the one of step `best`; called on the first rank."""
    steps = sorted(int(p.name.removeprefix("step_")) for p in folder.glob("step_*"))
    for step in steps[:-keep_last]:
        if step != best:
            shutil.rmtree(folder / f"step_{step}")
            shutil.rmtree(folder / f"universal_{step}", ignore_errors=True)


def seal(folder: Path) -> None:
    """List the folder's files with their hashes; everything is on disk when this returns."""
    listed = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync(path)
        listed[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_atomically(folder / FILES, json.dumps(listed, indent=1))


def put_in_place(staging: Path, final: Path) -> None:
    """Rename a sealed folder; one that is there is replaced."""
    shutil.rmtree(final, ignore_errors=True)
    staging.rename(final)
    sync(final.parent)
