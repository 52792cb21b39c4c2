"""The cells of a comparison: each is trained and decoded once, with its result in its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from janus_pt.claims.data import Data
from janus_pt.claims.decode import DECODE_REQUEST, missing
from janus_pt.claims.plan import Cell
from janus_pt.claims.tracking import open_experiment
from janus_pt.config.reader import to_json
from janus_pt.train.report.tracking import flatten
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import write_atomically

TRAINED = "trained.json"
"""File of a cell's folder that says that the training is done."""


def train_and_decode(cells: Sequence[Cell], data: Data, jobs: int, lock: int) -> None:
    """Train all cells and decode each in all its ways, `jobs` at a time with a thread each.

    Args:
        lock: file descriptor of the folder's lock. The processes that train and decode inherit it:
            as long as one of them lives, the lock is held.

    Raises:
        UserError: some cells failed; all others have been done.
    """
    for cell in cells:
        _claim_folder(cell)
    # Once here, since trainings that start together would make the experiment together.
    open_experiment(cells)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_do_cell, cell, data, lock) for cell in cells]
        try:
            messages = [future.result() for future in futures]
        except BaseException:
            # Ctrl-C reaches the running processes, too: what has not begun must not begin.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failed = [message for message in messages if message is not None]
    if failed:
        head = f"{len(failed)} of {len(cells)} cells failed; see their logs:"
        raise UserError("\n  ".join([head, *failed]))


def _claim_folder(cell: Cell) -> None:
    """Write the cell's configuration, or compare it with the existing one."""
    path = cell.folder / "config.json"
    text = to_json(cell.config)
    cell.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomically(path, text)
        return
    existing = dict(flatten(json.loads(path.read_text())))
    wanted = dict(flatten(json.loads(text)))
    changed = [
        f"{key} (was {existing.get(key)}, is {value})"
        for key, value in wanted.items()
        if value != existing.get(key)
    ]
    if changed:
        raise UserError(
            f"{cell.folder}: was made with another configuration: {', '.join(changed)}; give "
            f"another --output, or remove this folder and {cell.run} to do it again"
        )


def _do_cell(cell: Cell, data: Data, lock: int) -> str | None:
    """Train and decode a cell; a message about what failed, if anything did.

    The message is returned, not raised, so that the other cells go on.
    """
    return _train(cell, lock) or _decode(cell, data, lock)


def _train(cell: Cell, lock: int) -> str | None:
    if (cell.folder / TRAINED).exists():
        return None
    config = str(cell.folder / "config.json")
    # A training that was killed goes on from its last checkpoint.
    arguments = ("janus_pt", "finetune", "--config", config, "--resume", "auto")
    message = _run_logged(cell, lock, "training", *arguments)
    if message is None:
        write_atomically(cell.folder / TRAINED, json.dumps({"export": str(cell.run / "export")}))
    return message


def _decode(cell: Cell, data: Data, lock: int) -> str | None:
    if not missing(cell.folder, cell.system.ways):
        return None
    request = {
        "task": data.task,
        "data": str(data.folder),
        "split": data.splits[2],
        "ways": cell.system.ways,
        "model": str(cell.run / "export"),
    }
    write_atomically(cell.folder / DECODE_REQUEST, json.dumps(request))
    return _run_logged(cell, lock, "decoding", "janus_pt.claims.decode", str(cell.folder))


def _run_logged(cell: Cell, lock: int, work: str, module: str, *arguments: str) -> str | None:
    """Run a module with its output in `WORK.log` of the cell's folder; a message if it fails."""
    print(f"{cell.name}: {work}", flush=True)
    log_file = cell.folder / f"{work}.log"
    # `--jobs` cells share the cores: more threads each would only wait for one another.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log_file.open("ab") as log:
        code = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(lock,),
        ).returncode
    return f"{cell.name}: {work} left with exit code {code}: {log_file}" if code else None
