"""Running the checks one after the other."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from janus_pt.benchmark.gpu_check.layouts import compare_layouts
from janus_pt.benchmark.gpu_check.processes import run_check
from janus_pt.benchmark.gpu_check.result import Result
from janus_pt.benchmark.gpu_check.table import Check, all_checks


def run_checks(
    device: str, ranks: int, groups: Collection[str], folder: Path
) -> list[tuple[Check, Result]]:
    """Each check of these groups with its result, which is printed as it comes."""
    outcomes = []
    for check in all_checks(device, ranks, folder):
        if check.group not in groups:
            continue
        result = run_check(check.function, check.settings, device, check.ranks, check.timeout_s)
        outcomes.append((check, result))
        print(f"{check.group}: {check.name}: {result.status}: {result.message}", flush=True)
    layouts = {check.name: result for check, result in outcomes if check.group == "layouts"}
    if layouts:
        # Only now are there numbers to compare with.
        compare_layouts(layouts)
        for name, result in layouts.items():
            print(f"layouts: {name}: {result.status}: {result.message}", flush=True)
    return outcomes
