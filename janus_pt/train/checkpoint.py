"""Checkpoints: written under another name, listed with their hashes, renamed; `latest` last.

A folder `checkpoints/step_N/` holds DeepSpeed's files, `state.json` (ours), `config.json` and `files.json` (size and
sha256 of all the others). DeepSpeed's files are pickles: they are read only if the hashes agree.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.errors import UserError
from janus_pt.files import file_hash, sync, write_atomically

LATEST, STATE, FILES = "latest", "state.json", "files.json"


def save(engine: Any, folder: Path, step: int, state: dict[str, Any], config_json: str) -> Path:
    """Write the checkpoint of `step` and make it the latest; all ranks take part."""
    staging, final = folder / f".step_{step}.partial", folder / f"step_{step}"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=staging.name, save_latest=False)
    dist.barrier()
    if first:
        (staging / STATE).write_text(json.dumps(state, indent=1))
        (staging / "config.json").write_text(config_json)
        _seal(staging)
        shutil.rmtree(final, ignore_errors=True)
        staging.rename(final)
        sync(folder)
        write_atomically(folder / LATEST, final.name)
    dist.barrier()
    return final


def load(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Load the latest checkpoint into the engine and return its state, or None if there is none.

    All ranks take part. Raises `UserError` if the checkpoint is damaged or incomplete.
    """
    found: list[Any] = [None, None, None]
    if dist.get_rank() == 0:
        found = list(_find(folder))
    dist.broadcast_object_list(found, src=0)
    name, state, problem = found
    if problem is not None:
        raise UserError(problem)
    if name is None:
        return None
    path, _ = engine.load_checkpoint(str(folder), tag=name)
    if path is None:
        raise UserError(f"{folder / name}: DeepSpeed found no checkpoint for this layout there")
    return dict(state)


def _find(folder: Path) -> tuple[str | None, dict[str, Any] | None, str | None]:
    """Name and state of the latest checkpoint, or what is wrong with it."""
    latest = folder / LATEST
    if not latest.is_file():
        return None, None, None
    name = latest.read_text().strip()
    problem = verify(folder / name)
    if problem is not None:
        return None, None, problem
    return name, json.loads((folder / name / STATE).read_text()), None


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


def _seal(folder: Path) -> None:
    """List the folder's files with their hashes; everything is on disk when this returns."""
    listed = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync(path)
        listed[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_atomically(folder / FILES, json.dumps(listed, indent=1))
