"""Loading a checkpoint into an engine, converted first if another layout has written it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.checkpoint import universal
from janus_pt.checkpoint.layout import Layout, describe_layout
from janus_pt.checkpoint.store import FILES, STATE, seal, verify
from janus_pt.parallel.engine import Engine
from janus_pt.parallel.job_store import from_first_rank
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import staged_folder


def load(engine: Engine, path: Path, layout: Layout) -> dict[str, Any]:
    """Load a checkpoint that `store.find` has returned into the engine, and return its state.

    A checkpoint of another layout is converted, which is reported. All ranks take part.

    Raises:
        UserError: the checkpoint cannot be converted.
    """
    found, state, problem = None, None, None
    # One rank converts for all: the others would write the same folder.
    if dist.get_rank() == 0:
        try:
            state = json.loads((path / STATE).read_text())
            found = str(_loadable(path, state["layout"], layout))
        except UserError as error:
            # Raised below, on all ranks: if one alone failed, the others would wait for it.
            problem = str(error)
    result: list[Any] = [found, state, problem]
    found, state, problem = from_first_rank(result)
    if problem is not None:
        raise UserError(problem)
    assert found is not None and state is not None
    loadable = Path(found)
    if universal.is_universal(loadable):
        universal.load(engine, loadable, state["step"])
    else:
        _load_own_format(engine, loadable)
    return dict(state)


def _load_own_format(engine: Engine, path: Path) -> None:
    """Have DeepSpeed read the files that this layout's ranks have written."""
    # Frozen parameters are not in a checkpoint, and a strict load would miss them.
    trains_all = all(parameter.requires_grad for parameter in engine.module.parameters())
    loaded, _ = engine.load_checkpoint(
        str(path.parent), tag=path.name, load_module_strict=trains_all
    )
    if loaded is None:
        raise UserError(f"{path}: DeepSpeed found no checkpoint for this layout there")


def _loadable(path: Path, written_on: Layout, layout: Layout) -> Path:
    """The checkpoint in a form that this layout can load."""
    if written_on == layout or universal.is_universal(path):
        return path
    print(
        f"{path} was written on {describe_layout(written_on)}, this run is "
        f"{describe_layout(layout)}: converting the checkpoint",
        file=sys.stderr,
        flush=True,
    )
    return convert(path)


def convert(checkpoint: Path, target: Path | None = None, workers: int = 1) -> Path:
    """Write a checkpoint in the form that any layout can load, and return its folder.

    By default that is `universal_N` beside `step_N`; if a whole one exists already, it is used. Not
    for several ranks.

    Raises:
        UserError: the checkpoint is damaged, or of a layout that cannot be converted.
    """
    # DeepSpeed's converter unpickles the files: never before their hashes have been compared.
    problem = verify(checkpoint)
    if problem is not None:
        raise UserError(problem)
    if universal.is_universal(checkpoint):
        return checkpoint
    if target is None:
        target = checkpoint.with_name(checkpoint.name.replace("step_", "universal_"))
    if (target / FILES).exists() and verify(target) is None:
        return target
    state = json.loads((checkpoint / STATE).read_text())
    with staged_folder(target) as staging:
        universal.write(checkpoint, staging, state["layout"], workers)
        for name in (STATE, "config.json"):
            shutil.copy(checkpoint / name, staging / name)
        seal(staging)
    return target
