"""The findings as one JSON file and one page."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import janus_pt
from janus_pt.benchmark.gpu_check.result import Result
from janus_pt.benchmark.gpu_check.table import Check
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import write_json

SPEED_COLUMNS = {
    "step_s": ("step, s", "{:.4f}"),
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
    "mfu": ("MFU", "{:.1%}"),
    "memory/allocated_gib": ("allocated, GiB", "{:.2f}"),
    "memory/reserved_gib": ("reserved, GiB", "{:.2f}"),
    "time/forward_backward": ("forward and backward, s", "{:.4f}"),
    "time/update": ("exchange and update, s", "{:.4f}"),
    "launches": ("launches", "{:,}"),
    "copies_and_graphs": ("copies, graphs", "{:,}"),
}


def machine(device: str, ranks: int) -> dict[str, Any]:
    """What the checks ran on."""
    found: dict[str, Any] = {
        "janus_pt": janus_pt.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "devices": ranks,
        "device": platform.machine() + " CPU",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "driver": _driver_version(),
        }
    return found


def _driver_version() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def file_stem(found: Mapping[str, Any]) -> str:
    """A name for the files: the device's, and how many there are."""
    name = str(found["device"]).removeprefix("NVIDIA ")
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}_x{found['devices']}"


def write_report(
    folder: Path, found: Mapping[str, Any], outcomes: Sequence[tuple[Check, Result]]
) -> tuple[Path, Path]:
    """Write the JSON file and the page; where they are."""
    stem = folder / file_stem(found)
    json_path, page_path = stem.with_suffix(".json"), stem.with_suffix(".md")
    checks = [
        {"name": check.name, "group": check.group, "ranks": check.ranks, **result.as_dict()}
        for check, result in outcomes
    ]
    write_json(json_path, {"machine": dict(found), "checks": checks})
    page_path.write_text(page(found, outcomes), encoding="utf-8")
    return json_path, page_path


def page(found: Mapping[str, Any], outcomes: Sequence[tuple[Check, Result]]) -> str:
    """The page in Markdown."""
    rows = [
        (
            check.group,
            check.name,
            str(check.ranks),
            result.status,
            f"{result.seconds:.0f}",
            _cell(result.message),
        )
        for check, result in outcomes
    ]
    headers = ("group", "check", "ranks", "result", "seconds", "what was found")
    parts = [
        f"# {found['devices']} x {found['device']}",
        "Written by `janus-pt gpu-check`.",
        format_table([(k, str(v)) for k, v in found.items()], ("", ""), align="ll", markdown=True),
        "## Checks",
        format_table(rows, headers, align="llrlrl", markdown=True),
    ]
    speeds = [(check, result) for check, result in outcomes if "step_s" in result.numbers]
    if speeds:
        parts += ["## Speed", _speed_table(speeds)]
    return "\n\n".join(parts) + "\n"


def _speed_table(speeds: Sequence[tuple[Check, Result]]) -> str:
    shown = [key for key in SPEED_COLUMNS if any(key in result.numbers for _, result in speeds)]
    rows = []
    for check, result in speeds:
        cells = [
            SPEED_COLUMNS[key][1].format(result.numbers[key]) if key in result.numbers else "-"
            for key in shown
        ]
        rows.append((check.name, *cells))
    headers = ("", *(SPEED_COLUMNS[key][0] for key in shown))
    return format_table(rows, headers, markdown=True)


def _cell(text: str) -> str:
    """On one line, without what ends a cell."""
    return " ".join(text.replace("|", "/").split())[-300:]
