"""The cells of a comparison: each is done once, and its result kept in its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from janus_pt.claims.data import ROOT, Data
from janus_pt.claims.decode import (
    REQUEST,
    missing,
    predictions_file,
    read_predictions,
    read_row,
    result_file,
)
from janus_pt.claims.plan import COUNTERPART, Cell, Scale
from janus_pt.claims.tracking import open_experiment
from janus_pt.config.objectives import OBJECTIVES
from janus_pt.config.reader import to_json
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash, write_atomically

TRAINED = "trained.json"
Json = dict[str, Any]


def train_and_decode(cells: Sequence[Cell], data: Data, jobs: int, lock: int) -> None:
    """Train all cells and decode each in all its ways, `jobs` at a time with a thread each.

    The processes inherit the file descriptor `lock`: as long as one of them lives, the lock is held.

    Raises:
        UserError: some cells failed; all others have been done.
    """
    for cell in cells:
        _claim_folder(cell)
    open_experiment(cells)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(_do, cell, data, lock) for cell in cells]
        try:
            failed = [message for future in waiting if (message := future.result())]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise UserError(
            "\n  ".join([f"{len(failed)} of {len(cells)} cells failed; see their logs:", *failed])
        )


def _claim_folder(cell: Cell) -> None:
    """Write the cell's configuration, or compare it with the one that is there."""
    from janus_pt.train.report.tracking import flatten

    path, wanted = cell.folder / "config.json", to_json(cell.config)
    cell.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomically(path, wanted)
        return
    there, here = (dict(flatten(json.loads(text))) for text in (path.read_text(), wanted))
    changed = [
        f"{key} (was {there.get(key)}, is {here.get(key)})"
        for key in here
        if here[key] != there.get(key)
    ]
    if changed:
        raise UserError(
            f"{cell.folder}: was made with another configuration: {', '.join(changed)}; give another --output, or "
            f"remove this folder and {cell.run} to do it again"
        )


def _do(cell: Cell, data: Data, lock: int) -> str | None:
    """Train and decode a cell; what went wrong, if anything did."""
    run = partial(_logged, cell, lock)
    if not (cell.folder / TRAINED).exists():
        arguments = ("--config", cell.folder / "config.json", "--resume", "auto")
        if code := run("training", ROOT / "launchers" / "finetune.py", *arguments):
            return (
                f"{cell.name}: training left with exit code {code}: {cell.folder / 'training.log'}"
            )
        write_atomically(cell.folder / TRAINED, json.dumps({"export": str(cell.run / "export")}))
    if missing(cell.folder, cell.system.ways):
        request = {
            "task": data.task,
            "data": str(data.folder),
            "split": data.splits[2],
            "ways": cell.system.ways,
        }
        write_atomically(
            cell.folder / REQUEST, json.dumps({**request, "model": str(cell.run / "export")})
        )
        if code := run("decoding", "-m", "janus_pt.claims.decode", cell.folder):
            return (
                f"{cell.name}: decoding left with exit code {code}: {cell.folder / 'decoding.log'}"
            )
    return None


def _logged(cell: Cell, lock: int, what: str, *command: object) -> int:
    print(f"{cell.name}: {what}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (cell.folder / f"{what}.log").open("ab") as log:
        return subprocess.run(
            [sys.executable, *map(str, command)],
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(lock,),
        ).returncode


def baseline_of(
    cell: Cell, way: str, cells: Sequence[Cell], baseline: str | None
) -> tuple[Cell, str] | None:
    """The cell of the same seed, and the way, that this one is compared with; None if there is none or it is that.

    Without a name for it the baseline is the objective whose row says so for this mode.
    """
    mode = cell.system.ways[way]["mode"]
    name = baseline or next((n for n, row in OBJECTIVES.items() if mode in row.baseline_of), None)
    other = next((c for c in cells if c.system.name == name and c.seed == cell.seed), None)
    if other is None:
        return None
    found = way if way in other.system.ways else COUNTERPART.get(way)
    if found not in other.system.ways or (other, found) == (cell, way):
        return None
    return other, found


def compare(cell: Cell, way: str, other: tuple[Cell, str] | None, data: Data) -> Json:
    """sacrebleu's paired bootstrap of a cell's outputs against another's, or its own for the interval alone."""
    from janus_pt.tasks.bleu import paired_bootstrap
    from janus_pt.tasks.evaluate import comparable

    sides = ((cell, way), other or (cell, way))
    path = result_file(cell.folder, way).with_suffix(".compared.json")
    of = [file_hash(predictions_file(c.folder, w)) for c, w in sides]
    if path.exists() and (known := json.loads(path.read_text())).get("of") == of:
        return dict(known)
    ours, base = (comparable(data.row, read_predictions(c.folder, w), data.test) for c, w in sides)
    found = {"of": of, **paired_bootstrap(ours, base.predictions)}
    write_atomically(path, json.dumps(found, indent=1))
    return found


def measure_speed(output: Path, cells: Sequence[Cell], data: Data, scale: Scale) -> Json:
    """Sentences/s of every way of every cell, by batch size; all take turns, in one process with one thread."""
    import torch

    from janus_pt.benchmark.decode import time_ways
    from janus_pt.export.folder import read_export_config
    from janus_pt.inference.janus_model import JanusModel

    keys = [f"{cell.name}: {way}" for cell in cells for way in cell.system.ways]
    models = [read_export_config(cell.run / "export").model_sha256 for cell in cells]
    of = {
        "models": models,
        "ways": keys,
        "scale": [scale.timed, list(scale.batch_sizes), scale.repeats],
    }
    path = output / "speed.json"
    if path.exists() and (known := json.loads(path.read_text())).get("of") == of:
        return dict(known)

    print("speed: all ways by turns", flush=True)
    torch.set_num_threads(1)
    loaded = {cell.name: JanusModel.from_pretrained(cell.run / "export") for cell in cells}
    first = next(iter(loaded.values()))
    texts = sorted(data.test.sources[: scale.timed], key=lambda text: -len(first.encode(text)))
    rows = [
        (loaded[cell.name], read_row(cell.folder, way))
        for cell in cells
        for way in cell.system.ways
    ]
    jobs = [partial(model.generate, mode=row["mode"], **row["options"]) for model, row in rows]
    timed = time_ways(jobs, texts, scale.batch_sizes, scale.repeats)
    speeds = {
        key: {str(n): rate for n, (rate, _) in own.items()}
        for key, own in zip(keys, timed, strict=True)
    }
    device = torch.cuda.get_device_name() if first.device.type == "cuda" else "one CPU thread"
    found = {
        "of": of,
        "sentences": len(texts),
        "repeats": scale.repeats,
        "device": device,
        "speeds": speeds,
    }
    write_atomically(path, json.dumps(found, indent=1))
    return found
