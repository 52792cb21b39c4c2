"""Saving in the background: training waits until the state is in memory, a thread writes it.

Every rank writes the files DeepSpeed makes of its part, and a list of them with their hashes. The
first rank waits for all lists, joins them to `files.json`, gives the folder its name and replaces
`latest`: only then is there a checkpoint. No rank waits for another meanwhile; they meet in the
folder, which all nodes share.
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
from janus_pt.checkpoint.store import FILES, LATEST, STATE, prune
from janus_pt.parallel.engine import Engine
from janus_pt.parallel.job_store import from_first_rank, meet
from janus_pt.utils.errors import warn
from janus_pt.utils.files import replace_folder, write_atomically

EXIT_NOT_SAVED = 12
"""Exit code of a run some of whose checkpoints could not be written."""
WAIT_S = 600.0
"""How long the first rank waits for another's files once its own are written."""
GIVE_UP_S = 20.0
"""How long a run that ends in an error still tries to finish the checkpoint being written."""
POLL_S = 0.05


class InMemoryCheckpointEngine(CheckpointEngine):
    """Takes the files of a checkpoint from DeepSpeed, which believes that they are on a disk."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files: dict[str, io.BytesIO] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to prepare."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Files need no folders here."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keep one file, copied from the device."""
        content = io.BytesIO()
        torch.save(state_dict, content)
        self.files[os.path.relpath(path, self.folder)] = content

    def load(self, path: str, map_location: Any = None) -> Any:
        """Never called: the engine has its own again when it loads."""
        raise AssertionError(path)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Nothing to finish."""
        return True


def snapshot(engine: Engine) -> dict[str, io.BytesIO]:
    """The checkpoint files of this rank, in memory, by their path in the checkpoint.

    Without frozen parameters, which stay as `run.init_from` has them. All ranks take part.
    """
    disk_engine = engine.checkpoint_engine
    # DeepSpeed copies scripts beside its checkpoints, past the checkpoint engine: to be thrown away.
    with tempfile.TemporaryDirectory() as scratch:
        memory = InMemoryCheckpointEngine(os.path.join(scratch, "all"))
        engine.checkpoint_engine = memory
        try:
            # Pipelines hold the token table on several stages; which one counts, they say.
            table_stage = getattr(engine.module, "tied_stages", [0])[0]
            engine.save_checkpoint(
                scratch,
                tag="all",
                client_state=universal.info(engine.module.model, table_stage),
                # `latest` is ours: it must not name a checkpoint that is not yet on the disk.
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        finally:
            engine.checkpoint_engine = disk_engine
    return memory.files


class AsyncCheckpointer:
    """Writes the checkpoints of a run, one at a time.

    All ranks take part in every public method but `give_up`.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        # In the name of every staging folder: ranks of this job must not meet in a folder that an
        # earlier, killed job has left half full.
        self._job = from_first_rank(uuid.uuid4().hex[:8])
        self._folder = folder
        self._keep_last = keep_last
        self._rank = dist.get_rank()
        self._ranks = dist.get_world_size()
        # Not started: the first `save` has nothing to wait for.
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
        """Take the state as it is; return when it is in memory. Waits for the save before.

        A checkpoint that cannot be written is reported, and harms neither the training nor the
        existing checkpoints.

        Args:
            best: steps of checkpoints that are kept as well as the last ones.
        """
        # One at a time: two copies of the state in memory would be one too many.
        self._wait()
        # Some rank's disk may be slow, and DeepSpeed's own barrier in `snapshot` waits on NCCL.
        meet()
        files = snapshot(engine)
        if self._rank == 0:
            files[STATE] = io.BytesIO(json.dumps(state, indent=1).encode())
            files["config.json"] = io.BytesIO(config_json.encode())
        # A daemon: a disk that hangs must not keep a process alive that is to end.
        self._thread = threading.Thread(
            target=self._write, args=(step, files, best), name="saving", daemon=True
        )
        self._thread.start()

    def finish(self) -> bool:
        """Wait until the last one is written; whether all were, the same on all ranks."""
        self._wait()
        # The first rank knows: it waits for every other's list, and notices one that is missing.
        failed = from_first_rank(self._failed)
        return not failed

    def give_up(self, seconds: float = GIVE_UP_S) -> None:
        """At the end of a run, however it ends: give the save in progress a last while.

        What is not complete then has no name that counts, and the next start removes it.

        No other rank takes part, since they may be gone.
        """
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _wait(self) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def _write(self, step: int, files: dict[str, io.BytesIO], best: Sequence[int]) -> None:
        """In the thread: write this rank's files; on the first rank, complete the checkpoint.

        No collective in here: the training thread is in collectives of its own meanwhile.
        """
        staging = self._folder / f".step_{step}.{self._job}.partial"
        try:
            staging.mkdir(parents=True, exist_ok=True)
            listed = {name: _write_file(staging / name, content) for name, content in files.items()}
            # Last: to the first rank, the list means that all files are on the disk.
            write_atomically(staging / _list_name(self._rank), json.dumps(listed))
            if self._rank == 0:
                self._complete(staging, step, best)
        except OSError as error:
            self._failed = True
            # The first rank need not wait for a list that never comes.
            with contextlib.suppress(OSError):
                (staging / _failure_name(self._rank)).write_text(str(error))
            if self._rank == 0:
                warn(f"step {step} is not saved: {error}; training goes on, older checkpoints stay")
                shutil.rmtree(staging, ignore_errors=True)

    def _complete(self, staging: Path, step: int, best: Sequence[int]) -> None:
        """On the first rank: make a checkpoint of the files that all ranks have written."""
        listed: dict[str, Any] = {}
        for rank in range(self._ranks):
            path = _wait_for_list(staging, rank)
            listed |= json.loads(path.read_text())
            path.unlink()
        write_atomically(staging / FILES, json.dumps(listed, indent=1))
        final = self._folder / f"step_{step}"
        replace_folder(staging, final)
        # Only now, and old checkpoints go only after that: at every moment there is one whole
        # checkpoint, and `latest` names one.
        write_atomically(self._folder / LATEST, final.name)
        prune(self._folder, self._keep_last, best)


def _write_file(path: Path, content: io.BytesIO) -> dict[str, Any]:
    """Write a file, wait until it is on the disk, and return its entry of `files.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The buffer itself, not a copy of it: it is as large as this rank's part of the state.
    with content.getbuffer() as data:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            # Else a power cut could leave a checkpoint with its name and list, but without content.
            os.fsync(file.fileno())
        # Of the memory, not of the file: so the hash also finds what the disk has changed.
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _wait_for_list(staging: Path, rank: int) -> Path:
    """The list of a rank's files, once it is there.

    Raises:
        OSError: the rank could not write its files, or wrote nothing for `WAIT_S` seconds.
    """
    written = staging / _list_name(rank)
    failure = staging / _failure_name(rank)
    deadline = time.monotonic() + WAIT_S
    # By the file system, which is what the ranks share here: this is not the training thread.
    while not written.exists():
        if failure.exists():
            raise OSError(f"rank {rank}: {failure.read_text()}")
        if time.monotonic() > deadline:
            raise OSError(f"rank {rank}: nothing from it for {WAIT_S:g} s")
        time.sleep(POLL_S)
    return written


def _list_name(rank: int) -> str:
    return f"written.{rank}.json"


def _failure_name(rank: int) -> str:
    return f"failed.{rank}"
