"""What a build is: compared with what stands in its work folder before anything is done.

datatrove knows which tasks are finished by empty files, and compares nothing else: another number of tasks, another
filter or another file in the same folders would give a corpus that is neither the old nor the new one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from janus_pt.data import manifest
from janus_pt.data_prep.journal import SKIPPED_NAME
from janus_pt.data_prep.pipeline import report
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.shard_writer import ATTEMPT, is_written, tokenizer_paths
from janus_pt.data_prep.pipeline.sources import (
    SourceFile,
    find_files,
    portions,
    read_files,
    write_files,
)
from janus_pt.data_prep.pipeline.stages import make_stages
from janus_pt.tokenizer import FOLDER_FILE_NAMES, load_tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, write_atomically

FILE_NAME = "build.json"
LOGS = "logs"
_OURS = (
    "shard-*.tar", "shard-*.idx.npy", *FOLDER_FILE_NAMES, SKIPPED_NAME, report.JSON_NAME, report.HTML_NAME,
)  # fmt: skip


def remembered_tasks(config: CorpusBuildConfig) -> int | None:
    """The number of tasks of a build that has begun."""
    identity = _read(Path(config.work_folder))
    return None if identity is None else int(identity["tasks"])


def begin(config: CorpusBuildConfig, overwrite: bool) -> None:
    """Begin a build, or make sure that it is the one that was begun.

    Raises:
        UserError: the folders hold another build or something else, or a source has no files.
    """
    work, output = Path(config.work_folder), Path(config.output)
    if overwrite:
        _clear(work, output)
    old = _read(work)
    if old is not None and old["tasks"] != config.tasks:
        raise UserError(
            f"tasks: this build was begun with {old['tasks']}, and duplicates are known by task and number, so with "
            f"{config.tasks} the wrong documents would be removed; run with --tasks {old['tasks']}, or build anew with "
            "--overwrite"
        )
    files = find_files(config)
    new = _identity(config, files)
    if old is None:
        for folder in (work, output):
            if folder.exists() and any(folder.iterdir()):
                raise UserError(
                    f"{folder}: not empty and no build; give another folder, or --overwrite"
                )
            make_folder(folder)
        write_files(files, work)
        # Last: it says that a build has begun.
        write_atomically(work / FILE_NAME, json.dumps(new, indent=1) + "\n")
        return
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed:
        raise UserError(
            f"{work}: holds a build with other settings or inputs (changed: {', '.join(changed)}); give other "
            "folders, or build anew with --overwrite"
        )
    _take_repaired(config, files)
    make_folder(output)
    _agree(config)


def _take_repaired(config: CorpusBuildConfig, found: list[SourceFile]) -> None:
    """Take files of another size that no finished task has read, as where one was cut short and fetched again.

    Raises:
        UserError: a finished task has read another content.
    """
    work = Path(config.work_folder)
    files = read_files(work)
    changed = [place for place, file in enumerate(files) if file.size_now != found[place].size]
    if not changed:
        return
    marks = (work / LOGS / make_stages(config)[0].name / "completions").glob("*")
    parts = [part for mark in marks for part in portions(files, int(mark.name), config.tasks)]
    read = {part.file for part in parts}
    for place in changed:
        old, size = files[place], found[place].size
        if old in read:
            raise UserError(
                f"{old.url}: has {size:,} bytes, and had {old.size_now:,} when it was read; build anew with --overwrite"
            )
        files[place] = replace(old, repaired_size=size)
    write_files(files, work)


def _agree(config: CorpusBuildConfig) -> None:
    """Take back datatrove's mark of a finished task whose shards are not all there."""
    work, output = Path(config.work_folder), Path(config.output)
    for mark in (work / LOGS / "shards" / "completions").glob("*"):
        if not is_written(work, output, int(mark.name)):
            mark.unlink()
            # What was joined without them is no corpus.
            (output / manifest.FILE_NAME).unlink(missing_ok=True)
    if not (output / manifest.FILE_NAME).exists():
        (work / LOGS / "join" / "completions" / "00000").unlink(missing_ok=True)


@contextmanager
def held(config: CorpusBuildConfig) -> Iterator[None]:
    """Hold the build for this process alone. `UserError` if another one works on it."""
    work = Path(config.work_folder)
    make_folder(work)
    with (work.parent / f".{work.name}.lock").open("w") as lock:
        if not lock_descriptor(lock.fileno(), blocking=False):
            raise UserError(f"{work}: another process is building this corpus")
        yield


def _identity(config: CorpusBuildConfig, files: list[SourceFile]) -> dict[str, Any]:
    """Everything that decides the shards, but for the files' sizes."""
    listed = json.dumps([[file.source, file.url, file.target_url] for file in files])
    identity = {
        **config.recipe(),
        "tasks": config.tasks,
        "sources": [source.model_dump(mode="json") for source in config.sources],
        "files": sha256(listed.encode()).hexdigest(),
        "datatrove": version("datatrove"),
    }
    if config.tokenizer.path:
        # Contents, not paths: a build continues after its tokenizer was moved.
        identity["tokenizer"] = [
            load_tokenizer(path).fingerprint for path in tokenizer_paths(config)
        ]
    return identity


def _read(work: Path) -> dict[str, Any] | None:
    try:
        identity: dict[str, Any] = json.loads((work / FILE_NAME).read_text())
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{work / FILE_NAME}: damaged ({error}); build with --overwrite") from None
    return identity


def _clear(work: Path, output: Path) -> None:
    """Remove a build: the mark of a finished corpus first. Folders that are none are left as they are."""
    (output / manifest.FILE_NAME).unlink(missing_ok=True)
    if not (work / FILE_NAME).exists():
        return
    for pattern in _OURS:
        # Only files that a build writes: the folder is the user's.
        for path in output.glob(pattern):
            path.unlink()
    for attempt in output.glob(f"{ATTEMPT}*"):
        shutil.rmtree(attempt)
    shutil.rmtree(work)
