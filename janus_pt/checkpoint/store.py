"""The folder of checkpoints: which there are, which are whole, which are removed.

A folder `checkpoints/step_N/` holds DeepSpeed's files, `state.json` (ours), `config.json` and
`files.json` (size and sha256 of all the others). It is written under another name and renamed when
whole; the file `latest`, which names the newest checkpoint, is replaced last. DeepSpeed's files are
pickles, which can run code when they are read: they are read only if the hashes agree.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.parallel.job_store import from_all_ranks, from_first_rank
from janus_pt.utils.errors import UserError, warn
from janus_pt.utils.files import file_hash, write_atomically

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in the run folder."""
LATEST, STATE, FILES = "latest", "state.json", "files.json"


def find(folder: Path, quick: bool = False, before_step: int | None = None) -> Path | None:
    """The checkpoint to go on from: the one `latest` names or, if it is damaged, the newest whole.

    Checkpoints that are passed over are reported. None if there is no checkpoint. All ranks take
    part, each checking a part of the files.

    Args:
        quick: compare the sizes of the files only, not their hashes.
        before_step: consider only earlier steps, the newest first, whatever `latest` says.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    names: list[str] = []
    # One rank lists the folder for all: on a shared disk another may not see the newest yet.
    if dist.get_rank() == 0:
        if before_step is None:
            names = _candidates(folder)
        else:
            earlier = [step for step in steps_in(folder) if step < before_step]
            names = [f"step_{step}" for step in reversed(earlier)]
    problems: list[str] = []
    for name in from_first_rank(names):
        problem = _verify_together(folder / name, quick)
        if problem is None:
            for passed_over in problems:
                warn(f"{passed_over}; going on from {folder / name} instead")
            return folder / name
        problems.append(problem)
    if problems:
        raise UserError(
            f"no checkpoint in {folder} is whole: {'; '.join(problems)}; restore one, or start a "
            "new run"
        )
    return None


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, whole or not, in ascending order."""
    numbers = (path.name.removeprefix("step_") for path in folder.glob("step_*"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def best_of(state: Mapping[str, Any]) -> list[dict[str, float]]:
    """The best validations up to a checkpoint, from its state: the best first, each with step."""
    best = state["best"]
    if isinstance(best, list):
        return best
    # States of older versions hold the best one alone, or nothing.
    return [best] if best else []


def verify(checkpoint: Path, quick: bool = False, part: int = 0, parts: int = 1) -> str | None:
    """The first problem of a checkpoint's files, or None if it is whole.

    Args:
        quick: compare sizes only.
        part, parts: look at every `parts`-th file only, from number `part` on.
    """
    try:
        return _first_problem(checkpoint, quick, part, parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Without `files.json`, or with another content than `seal` writes, it was never finished.
        return f"{checkpoint}: {FILES} is missing or broken, the checkpoint is incomplete"


def _first_problem(checkpoint: Path, quick: bool, part: int, parts: int) -> str | None:
    listed = json.loads((checkpoint / FILES).read_text())
    existing = {
        str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()
    }
    # DeepSpeed loads by patterns of names: a file put here by somebody else would be unpickled.
    foreign = sorted(existing - set(listed) - {FILES})
    if foreign:
        return f"{checkpoint / foreign[0]}: not a file of this checkpoint"
    for name, expected in sorted(listed.items())[part::parts]:
        path = checkpoint / name
        # Sizes first: they cost nothing and find most damage, an interrupted copy.
        if name not in existing or path.stat().st_size != expected["bytes"]:
            return f"{path}: missing or cut short"
        if not quick and file_hash(path) != expected["sha256"]:
            return f"{path}: damaged, its content is not what was written"
    return None


def seal(folder: Path) -> None:
    """Write `files.json`: the folder's files with their sizes and hashes."""
    listed = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        entry = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        listed[str(path.relative_to(folder))] = entry
    write_atomically(folder / FILES, json.dumps(listed, indent=1))


def prune(folder: Path, keep_last: int, best: Sequence[int]) -> None:
    """Remove all checkpoints but the last `keep_last` whole ones and the steps `best`."""
    steps = steps_in(folder)
    # By the existence of the list alone: hashes would take minutes after every save.
    complete = [step for step in steps if (folder / f"step_{step}" / FILES).is_file()]
    kept = complete[-keep_last:]
    # Incomplete ones do not count: else they would push out the last that a run can go on from.
    if not kept:
        return
    for step in steps:
        if step < kept[0] and step not in best:
            shutil.rmtree(folder / f"step_{step}", ignore_errors=True)
            shutil.rmtree(folder / f"universal_{step}", ignore_errors=True)


def _candidates(folder: Path) -> list[str]:
    """Names of all checkpoints in the order in which to try them: `latest`, then the newest."""
    names = [f"step_{step}" for step in reversed(steps_in(folder))]
    try:
        latest = (folder / LATEST).read_text().strip()
    except (OSError, ValueError):
        latest = ""
    # A slash would lead to a folder outside, whose pickles nobody has looked at.
    if latest and "/" not in latest:
        return [latest, *(name for name in names if name != latest)]
    if names:
        warn(
            f"{folder / LATEST}: missing or broken; going by the names of the folders, "
            f"{names[0]} first"
        )
    return names


def _verify_together(checkpoint: Path, quick: bool) -> str | None:
    """The first problem that any rank has found in its part of the files, the same on all ranks."""
    # Hashing is bound by reading: every rank, on every node, takes its share.
    problem = verify(checkpoint, quick, dist.get_rank(), dist.get_world_size())
    # Not over NCCL: one rank's disk may be much slower than another's.
    return next((found for found in from_all_ranks(problem) if found is not None), None)
