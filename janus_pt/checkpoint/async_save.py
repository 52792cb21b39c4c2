"""Saving in the background: a step waits until its state lies in memory, a thread takes it to the disk.

Every rank writes the files DeepSpeed makes of its part, and a list of them with their hashes. The first rank waits
for all lists, joins them to `files.json`, gives the folder its name and replaces `latest`: only then is there a
checkpoint. No rank waits for another meanwhile; they meet in the folder, which all nodes share.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import (
    CheckpointCommitInfo,
    CheckpointEngine,
)

from janus_pt.checkpoint import universal
from janus_pt.checkpoint.store import FILES, LATEST, STATE, steps_in
from janus_pt.parallel.engine import Engine
from janus_pt.utils.errors import warn
from janus_pt.utils.files import replace_folder, write_atomically

EXIT_NOT_SAVED = 12
"""Of a run some of whose checkpoints could not be written."""
WAIT_S = 600.0
"""How long the first rank waits for another's files once its own are written."""
GIVE_UP_S = 20.0
"""How long a run that ends in an error still tries to finish the checkpoint that is being written."""
POLL_S = 0.05


class InMemoryCheckpointEngine(CheckpointEngine):
    """Takes the files of a checkpoint from DeepSpeed, which thinks that they are on a disk."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files: dict[str, io.BytesIO] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to prepare."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Files need no folders here."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keep one file, copied from the device."""
        content = self.files[os.path.relpath(path, self.folder)] = io.BytesIO()
        torch.save(state_dict, content)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Never asked for: the engine has its own again when it loads."""
        raise AssertionError(path)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Nothing to finish."""
        return True


def snapshot(engine: Engine) -> dict[str, io.BytesIO]:
    """The checkpoint files of this rank, in memory, by their path in the checkpoint; all ranks take part.

    What is not trained is left out.
    """
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # for the scripts that DeepSpeed puts beside its checkpoints
        memory, own = (
            InMemoryCheckpointEngine(os.path.join(scratch, "all")),
            engine.checkpoint_engine,
        )
        engine.checkpoint_engine = memory
        try:
            table_stage = getattr(engine.module, "tied_stages", [0])[0]  # pipelines have them
            info = universal.info(engine.module.model, table_stage)
            engine.save_checkpoint(
                scratch,
                tag="all",
                client_state=info,
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        finally:
            engine.checkpoint_engine = own
        return memory.files


class AsyncCheckpointer:
    """Writes the checkpoints of a run, one at a time; all ranks take part in all that is public."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        name = [uuid.uuid4().hex[:8]]
        dist.broadcast_object_list(name, src=0)
        self._job = str(name[0])
        self._folder, self._keep_last = folder, keep_last
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._thread = threading.Thread()
        self._failed = False
        if self._rank == 0:
            for left_over in folder.glob(".*.partial"):
                shutil.rmtree(left_over, ignore_errors=True)

    def save(
        self,
        engine: Engine,
        step: int,
        state: Mapping[str, Any],
        config_json: str,
        best: Sequence[int],
    ) -> None:
        """Take the state as it is; return when it lies in memory. The one before is waited for.

        A checkpoint that cannot be written is told of, and harms neither the training nor the checkpoints there are.

        Args:
            best: steps of checkpoints that are kept as well as the last ones.
        """
        self._wait()
        files = snapshot(engine)
        texts = {STATE: json.dumps(state, indent=1), "config.json": config_json}
        self._thread = threading.Thread(
            target=self._write, args=(step, files, texts, best), name="saving", daemon=True
        )
        self._thread.start()

    def finish(self) -> bool:
        """Wait until the last one is written; whether all were, the same on all ranks."""
        self._wait()
        failed = [self._failed]
        dist.broadcast_object_list(failed, src=0)
        return not failed[0]

    def give_up(self) -> None:
        """At the end of a run, however it ends: no longer wait for ranks that may be gone. No other rank takes part."""
        if self._thread.is_alive():
            self._thread.join(GIVE_UP_S)

    def _wait(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def _write(
        self, step: int, files: dict[str, io.BytesIO], texts: dict[str, str], best: Sequence[int]
    ) -> None:
        staging = self._folder / f".step_{step}.{self._job}.partial"
        try:
            staging.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items() if self._rank == 0 else ():
                files[name] = io.BytesIO(text.encode())
            listed = {name: _write_file(staging / name, content) for name, content in files.items()}
            write_atomically(staging / _list_of(self._rank), json.dumps(listed))
            if self._rank == 0:
                self._complete(staging, step, best)
        except OSError as error:
            self._failed = True
            with contextlib.suppress(OSError):
                (staging / _failure_of(self._rank)).write_text(str(error))
            if self._rank == 0:
                warn(f"step {step} is not saved: {error}; training goes on, older checkpoints stay")
                shutil.rmtree(staging, ignore_errors=True)

    def _complete(self, staging: Path, step: int, best: Sequence[int]) -> None:
        """On the first rank: make a checkpoint of what all ranks have written."""
        listed: dict[str, Any] = {}
        for rank in range(self._ranks):
            path = _awaited(staging, rank)
            listed |= json.loads(path.read_text())
            path.unlink()
        write_atomically(staging / FILES, json.dumps(listed, indent=1))
        final = self._folder / f"step_{step}"
        replace_folder(staging, final)
        write_atomically(self._folder / LATEST, final.name)
        prune(self._folder, self._keep_last, best)


def prune(folder: Path, keep_last: int, best: Sequence[int]) -> None:
    """Remove all checkpoints but the last `keep_last` that have their list of files, and those of the steps `best`."""
    steps = steps_in(folder)
    kept = [step for step in steps if (folder / f"step_{step}" / FILES).is_file()][-keep_last:]
    for step in steps:
        if kept and step < kept[0] and step not in best:
            shutil.rmtree(folder / f"step_{step}", ignore_errors=True)
            shutil.rmtree(folder / f"universal_{step}", ignore_errors=True)


def _write_file(path: Path, content: io.BytesIO) -> dict[str, Any]:
    """Write a file, wait until it is on the disk, and return its entry of `files.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with content.getbuffer() as data:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _awaited(staging: Path, rank: int) -> Path:
    """The list of a rank's files, when it is there; `OSError` if the rank could not write them."""
    deadline = time.monotonic() + WAIT_S
    while not (staging / _list_of(rank)).exists():
        if (staging / _failure_of(rank)).exists() or time.monotonic() > deadline:
            failure = staging / _failure_of(rank)
            reason = (
                failure.read_text() if failure.exists() else f"nothing from it for {WAIT_S:g} s"
            )
            raise OSError(f"rank {rank}: {reason}")
        time.sleep(POLL_S)
    return staging / _list_of(rank)


def _list_of(rank: int) -> str:
    return f"written.{rank}.json"


def _failure_of(rank: int) -> str:
    return f"failed.{rank}"
