"""The checks, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from janus_pt.benchmark.gpu_check.layouts import LAYOUTS

SPEED_CONFIGS = {"cuda": ("janus_base", "janus_large"), "cpu": ("janus_tiny",)}
DTYPES = ("float32", "bfloat16")


class Check(NamedTuple):
    """A check: its name and group, the function (`MODULE:FUNCTION`) with its arguments, and its ranks."""

    name: str
    group: str
    function: str
    settings: Mapping[str, Any]
    ranks: int
    timeout_s: float


def all_checks(device: str, ranks: int, folder: Path) -> Iterator[Check]:
    """The checks for `ranks` devices; checks that need more are skipped.

    Args:
        folder: for files that checks leave behind.
    """
    yield Check("objectives", "parity", "parity:objectives", {}, 1, 300)
    yield Check("attention stays fused", "attention", "parity:unfused_attention", {}, 1, 300)
    if ranks > 1:
        yield Check("transfers", "transfers", "transfers:transfers", {}, ranks, 300)
    for name, (needed, parallel) in LAYOUTS.items():
        if needed <= ranks:
            settings = {"parallel": parallel}
            yield Check(name, "layouts", "layouts:train_small_model", settings, needed, 300)
    for dtype in DTYPES:
        name = f"resume, {dtype}"
        arguments = {"dtype": dtype}
        resuming = min(ranks, 2)
        yield Check(name, "resume", "resume:resume_bit_for_bit", arguments, resuming, 300)
    for config in SPEED_CONFIGS[device]:
        measured = {"config": config, "trace": str(folder / f"{config}.trace.json.gz")}
        yield Check(f"{config}, training", "speed", "speed:training_speed", measured, ranks, 300)
        yield Check(
            f"{config}, benchmark", "speed", "speed:benchmark_train", {"config": config}, 1, 300
        )
