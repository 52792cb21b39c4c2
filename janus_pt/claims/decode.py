"""Decode and score one cell in its own process: `python -m janus_pt.claims.decode CELL_FOLDER`.

Reads `decode.json` of the folder; writes a file for each way, which is not decoded again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from janus_pt.utils.errors import entry_point
from janus_pt.utils.files import write_atomically

REQUEST = "decode.json"


def result_file(folder: Path, way: str) -> Path:
    """Where the row of a way is kept, as of `tasks.evaluate`."""
    return folder / f"{way.replace(',', '').replace(' ', '_')}.json"


def read_row(folder: Path, way: str) -> dict[str, Any]:
    """The row of a way."""
    row: dict[str, Any] = json.loads(result_file(folder, way).read_text(encoding="utf-8"))
    return row


def predictions_file(folder: Path, way: str) -> Path:
    """Where the texts that a way wrote are."""
    return Path(read_row(folder, way)["predictions"])


def read_predictions(folder: Path, way: str) -> list[str]:
    """What a way wrote, a text for each source."""
    return predictions_file(folder, way).read_text("utf-8").split("\n")[:-1]


def missing(folder: Path, ways: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The ways that have not been decoded yet."""
    return {way: options for way, options in ways.items() if not result_file(folder, way).exists()}


def main() -> None:
    """Decode what is missing."""
    from janus_pt.inference.janus_model import JanusModel  # imports torch
    from janus_pt.tasks.evaluate import evaluate

    folder = Path(sys.argv[1])
    request = json.loads((folder / REQUEST).read_text())
    model = JanusModel.from_pretrained(request["model"])
    for way, given in missing(folder, request["ways"]).items():
        options = dict(given)
        mode, target = options.pop("mode"), result_file(folder, way)
        changes = [f"{mode}.{option}={json.dumps(value)}" for option, value in options.items()]
        report = evaluate(
            *(model, request["task"], request["data"], request["split"], [mode]),
            output=str(target.with_suffix(".report")), changes=changes,
        )  # fmt: skip
        write_atomically(target, json.dumps(report["rows"][0], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    entry_point(main)
