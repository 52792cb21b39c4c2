"""The files of a corpus, and which task reads which of them.

datatrove deals whole files to tasks in turn. Here a task reads files that follow one another, about as many bytes as
any other task, and a large file is shared by several tasks, which take its records in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from janus_pt.data.files import local_path, with_retries
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import write_atomically

FILE_NAME = "files.json"


@dataclass(frozen=True)
class SourceFile:
    """One file, or one pair of files of source and target sentences."""

    source: int
    """Number of its source in the configuration."""
    url: str
    size: int
    """Stored bytes, of both files of a pair, as the build began: tasks share the work by them."""
    target_url: str | None = None
    repaired_size: int | None = None
    """Stored bytes now, where a file was replaced that no task had read to its end."""

    @property
    def size_now(self) -> int:
        """Stored bytes that the file should have."""
        return self.size if self.repaired_size is None else self.repaired_size


class Portion(NamedTuple):
    """What one task reads of one file: the records `part`, `part + parts`, `part + 2 * parts`, …"""

    file: SourceFile
    part: int
    parts: int


def find_files(config: CorpusBuildConfig) -> list[SourceFile]:
    """The files of all sources, in the order of the configuration and of their names.

    Raises:
        UserError: a source has none, or the two sides of a pair have not as many.
    """
    files = []
    for index, source in enumerate(config.sources):
        key = f"sources.{index}.path"
        found = _expand(source.path, key)
        targets: list[tuple[str, int]] = []
        if source.target_path:
            targets = _expand(source.target_path, f"sources.{index}.target_path")
            if len(targets) != len(found):
                raise UserError(
                    f"{key}: {len(found)} files match {source.path}, and {len(targets)} match "
                    f"{source.target_path}: they go in pairs"
                )
        for number, (url, size) in enumerate(found):
            target, target_size = targets[number] if targets else (None, 0)
            files.append(SourceFile(index, url, size + target_size, target))
    return files


def portions(files: Sequence[SourceFile], task: int, tasks: int) -> list[Portion]:
    """What a task reads. All tasks together read every record once, and any call gives the same answer."""
    total = sum(file.size for file in files) or 1
    chosen = []
    before = 0
    for file in files:
        # A file that is larger than a task's part is shared by several tasks.
        parts = max(1, round(tasks * file.size / total))
        for part in range(parts):
            # The task whose part of all bytes has the middle of this portion.
            middle = before + file.size * (2 * part + 1) / (2 * parts)
            if min(int(tasks * middle / total), tasks - 1) == task:
                chosen.append(Portion(file, part, parts))
        before += file.size
    return chosen


def write_files(files: Sequence[SourceFile], folder: Path) -> None:
    """Remember the files of a build, so that all its tasks agree."""
    write_atomically(folder / FILE_NAME, json.dumps([astuple(file) for file in files]))


def read_files(folder: Path) -> list[SourceFile]:
    """The files that `write_files` wrote."""
    return [SourceFile(*row) for row in json.loads((folder / FILE_NAME).read_text())]


def _expand(pattern: str, key: str) -> list[tuple[str, int]]:
    """(URL or path, bytes) of every file that a pattern names. `UserError` if there is none."""
    try:
        found = with_retries(pattern, lambda: list(_matches(pattern)))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if not found:
        raise UserError(
            f"{key}: no file matches {pattern}; give a file, or a pattern as in data/*.jsonl.gz"
        )
    return found


def _matches(pattern: str) -> Iterator[tuple[str, int]]:
    path = local_path(pattern)
    location = str(path.absolute()) if path is not None else pattern
    system, inner = fsspec.core.url_to_fs(location)
    names = sorted(system.glob(inner)) if has_magic(inner) else [inner]
    for name in names:
        info: dict[str, Any] = system.info(name)
        if info["type"] == "directory":
            # A folder that a pattern meets is passed over; one that is named is a mistake.
            if names == [inner]:
                raise UserError(
                    f"{pattern} is a folder: name its files, as in {pattern}/*.jsonl.gz"
                )
            continue
        url = name if path is not None else system.unstrip_protocol(name)
        # Some HTTP servers do not say how large a file is.
        yield url, int(info.get("size") or 0)
