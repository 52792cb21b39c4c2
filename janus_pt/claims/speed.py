"""The speed of every way of every cell, measured side by side in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from janus_pt.benchmark.timing import time_ways
from janus_pt.claims.data import Data
from janus_pt.claims.decode import read_row
from janus_pt.claims.plan import Cell, Scale
from janus_pt.config.exported import read_export_config
from janus_pt.inference.janus_model import JanusModel
from janus_pt.utils.files import write_atomically


@dataclass(frozen=True)
class Speed:
    """What was measured, and how.

    Attributes:
        of: models, ways and scale of the measurement; another of the same need not be done.
        sentences: sentences of the test set that were decoded.
        repeats: of so many the best counts.
        device: name of the device.
        speeds: `CELL: WAY` -> batch size -> sentences/s.
    """

    of: dict[str, Any]
    sentences: int
    repeats: int
    device: str
    speeds: Mapping[str, Mapping[str, float]]


def speed_key(cell: Cell, way: str) -> str:
    """The name of a cell's way in `Speed.speeds`."""
    return f"{cell.name}: {way}"


def measure_speed(output: Path, cells: Sequence[Cell], data: Data, scale: Scale) -> Speed:
    """Sentences/s of every way of every cell by batch size, kept in `speed.json` of `output`.

    All ways take turns in one process with one thread: a busy moment of the machine hits all.
    """
    pairs = [(cell, way) for cell in cells for way in cell.system.ways]
    keys = [speed_key(cell, way) for cell, way in pairs]
    of = {
        "models": [read_export_config(cell.run / "export").model_sha256 for cell in cells],
        "ways": keys,
        "scale": [scale.timed, list(scale.batch_sizes), scale.repeats],
    }
    # Kept for these models: the second call with a new system measures all anew, side by side.
    path = output / "speed.json"
    if path.exists():
        known = json.loads(path.read_text())
        if known.get("of") == of:
            return Speed(**known)
    print("speed: all ways by turns", flush=True)
    torch.set_num_threads(1)
    models = {cell.name: JanusModel.from_pretrained(cell.run / "export") for cell in cells}
    first = models[cells[0].name]
    # Longest first: the sentences of a batch are then about equally long.
    texts = sorted(data.test.sources[: scale.timed], key=lambda text: -len(first.encode(text)))
    jobs = []
    for cell, way in pairs:
        row = read_row(cell.folder, way)
        jobs.append(partial(models[cell.name].generate, mode=row["mode"], **row["options"]))
    timed = time_ways(jobs, texts, scale.batch_sizes, scale.repeats)
    speeds = {}
    for key, rates in zip(keys, timed, strict=True):
        # JSON has no numbers as keys.
        speeds[key] = {str(size): rate.sentences_per_s for size, rate in rates.items()}
    on_gpu = first.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else "one CPU thread"
    speed = Speed(of, len(texts), scale.repeats, device, speeds)
    write_atomically(path, json.dumps(asdict(speed), indent=1))
    return speed
