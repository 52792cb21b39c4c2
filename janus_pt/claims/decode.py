"""Decode and score one cell in its own process: `python -m janus_pt.claims.decode CELL_FOLDER`.

Reads `decode.json` of the folder and writes a file for each way of decoding; a way whose file is
there is not decoded again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from janus_pt.claims.ways import Ways
from janus_pt.inference.janus_model import JanusModel
from janus_pt.tasks.evaluate import evaluate
from janus_pt.utils.errors import entry_point
from janus_pt.utils.files import write_atomically

DECODE_REQUEST = "decode.json"


def result_file(folder: Path, way: str) -> Path:
    """The file with the row of a way, as `tasks.evaluate` reports it."""
    return folder / f"{way.replace(',', '').replace(' ', '_')}.json"


def read_row(folder: Path, way: str) -> dict[str, Any]:
    """The row of a way, as `tasks.evaluate` reports it."""
    row: dict[str, Any] = json.loads(result_file(folder, way).read_text(encoding="utf-8"))
    return row


def predictions_file(folder: Path, way: str) -> Path:
    """The file with the texts of a way."""
    return Path(read_row(folder, way)["predictions"])


def read_predictions(folder: Path, way: str) -> list[str]:
    """The texts of a way, one for each source."""
    # Not `splitlines`: a text may hold other line separators of Unicode.
    return predictions_file(folder, way).read_text("utf-8").split("\n")[:-1]


def missing(folder: Path, ways: Ways) -> Ways:
    """The ways that have not been decoded yet."""
    return {way: options for way, options in ways.items() if not result_file(folder, way).exists()}


def main() -> None:
    """Decode the missing ways of the folder on the command line."""
    folder = Path(sys.argv[1])
    request = json.loads((folder / DECODE_REQUEST).read_text())
    model = JanusModel.from_pretrained(request["model"])
    for way, way_options in missing(folder, request["ways"]).items():
        options = dict(way_options)
        mode = options.pop("mode")
        target = result_file(folder, way)
        changes = [f"{mode}.{option}={json.dumps(value)}" for option, value in options.items()]
        report = evaluate(
            model,
            request["task"],
            request["data"],
            request["split"],
            modes=[mode],
            # Predictions are called after the report: each way needs a name of its own.
            output=str(target.with_suffix(".report")),
            changes=changes,
        )
        # Written when all is there: this file says that the way is done.
        write_atomically(target, json.dumps(report["rows"][0], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    entry_point(main)
