"""`metrics.jsonl` of a run folder: one JSON object a line, the record of what a run did."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from janus_pt.utils.errors import UserError, warn
from janus_pt.utils.files import write_atomically

Record = dict[str, float]
"""One line: "step" and metrics by name."""


class MetricsFile:
    """Writes `metrics.jsonl`. On the first rank only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten = b""

    def append(self, record: Mapping[str, float]) -> None:
        """Write one record; it has left the process on return. NaN and infinities become null.

        If the disk does not take it, one warning is printed; the record is kept in memory and
        written with a later one.
        """
        content = self._unwritten + _to_line(record).encode()
        size_before: int | None = None
        try:
            # Unbuffered: a record must survive the process, and a full disk must be noticed here.
            with self.path.open("ab", buffering=0) as file:
                size_before = file.tell()
                if file.write(content) < len(content):
                    raise OSError("no space for a whole line")
            self._unwritten = b""
        except OSError as error:
            if not self._unwritten:
                warn(
                    f"{self.path}: cannot be written: {error}; training goes on, metrics are kept "
                    "until it can be"
                )
            self._unwritten = content
            # A part may have been written. The next record must not begin behind half a line.
            if size_before is not None:
                os.truncate(self.path, size_before)

    def truncate_after(self, step: int) -> None:
        """Drop records of later steps, which a resumed run repeats, and a line torn by a crash."""
        if not self.path.exists():
            return
        lines = [_to_line(record) for record in read_metrics(self.path) if record["step"] <= step]
        write_atomically(self.path, "".join(lines))


def read_metrics(path: Path) -> list[Record]:
    """All records of a metrics file, null as NaN. A last line without its end is skipped.

    Raises:
        UserError: another line is no record.
    """
    records, _ = metrics_after(path, 0)
    return records


def metrics_after(path: Path, offset: int) -> tuple[list[Record], int]:
    """The whole records from byte `offset` on, and the offset after them; see `read_metrics`."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    # The file may be read while the training writes to it: the last line counts once it ends.
    content = content[: content.rfind(b"\n") + 1]
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            records.append(_from_line(line))
        except (ValueError, KeyError, AttributeError, TypeError):
            position = f"line {number} from byte {offset} on" if offset else f"line {number}"
            raise UserError(f"{path}: {position} is no record of metrics; remove it") from None
    return records, offset + len(content)


def _to_line(record: Mapping[str, float]) -> str:
    # JSON has neither NaN nor infinities, and strict readers refuse Python's extension.
    finite = {key: value if math.isfinite(value) else None for key, value in record.items()}
    return json.dumps(finite) + "\n"


def _from_line(line: bytes) -> Record:
    values = json.loads(line)
    record = {key: math.nan if value is None else value for key, value in values.items()}
    record["step"] = int(record["step"])
    return record
