"""The progress of a build, so that a build that was killed continues.

`build.jsonl` in the corpus folder: the first line is the request (arguments and fingerprints of all inputs), each
further line a finished shard and the position in the input behind it (key `place`). A line is on disk before the next
shard begins. `skipped.jsonl` beside it lists the input lines that were skipped. The corpus is finished when
`manifest.json` exists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import lock_descriptor
from pydantic import ValidationError

from janus_pt.data import manifest
from janus_pt.data.manifest import Manifest, Shard
from janus_pt.data_prep.files import BadLine
from janus_pt.tokenizer import FOLDER_FILE_NAMES
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, sync

FILE_NAME = "build.jsonl"
SKIPPED_NAME = "skipped.jsonl"
_OURS = (
    "shard-*.tar",
    "shard-*.idx.npy",
    "shard-*.tmp",
    *FOLDER_FILE_NAMES,
    SKIPPED_NAME,
)


class BuildPosition(NamedTuple):
    """The position in the input at which the next shard begins."""

    items: int = 0
    """Items that are written completely."""
    taken: int = 0
    """Samples of the next item that are written."""
    skipped: int = 0
    """Lines of `skipped.jsonl`, with the lines of a partly written item."""
    skipped_bytes: int = 0


class Journal:
    """The journal of one corpus folder, held by this process alone until `close`."""

    def __init__(self, folder: Path, request: dict[str, Any], overwrite: bool) -> None:
        """Open or begin the journal; `position` and `shards` are the progress of the build.

        Raises:
            UserError: another process builds there, or the folder holds something else than this build.
        """
        path = folder / FILE_NAME
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; give a folder")
        if folder.exists() and not path.exists() and not overwrite and any(folder.iterdir()):
            raise UserError(
                f"{folder}: not empty and no unfinished build; give an empty folder, or --overwrite"
            )
        make_folder(folder)
        self._folder = folder
        # Append mode: the file must not be emptied before the lock is held.
        self._file = open(path, "a+b")  # noqa: SIM115 - closed in close()
        if not lock_descriptor(self._file.fileno(), blocking=False):
            raise UserError(f"{folder}: another process is building this corpus")
        if overwrite:
            self._clear()
        self.shards: list[Shard] = []
        self.position = BuildPosition()
        self._resume(request)
        self.finished = (folder / manifest.FILE_NAME).exists()
        if not self.finished:
            self._skipped = open(folder / SKIPPED_NAME, "ab")  # noqa: SIM115 - closed in close()
            # Lines of a shard that was not finished; its items are read again.
            self._skipped.truncate(self.position.skipped_bytes)

    def close(self) -> None:
        """Release the folder."""
        if not self.finished:
            self._skipped.close()
        self._file.close()

    def finish(self, content: Manifest) -> None:
        """Write the manifest, which makes the corpus finished, after all else is on disk."""
        self._sync_skipped()
        if not content.skipped:
            (self._folder / SKIPPED_NAME).unlink()
        content.write(self._folder)
        sync(self._folder)

    def skip(self, bad: Iterable[BadLine]) -> None:
        """List input lines that are skipped."""
        for line in bad:
            self._skipped.write(json.dumps(line._asdict(), ensure_ascii=False).encode() + b"\n")
            self.position = self.position._replace(skipped=self.position.skipped + 1)

    def add(self, shard: Shard, items: int, taken: int) -> None:
        """Record a finished shard and the position behind it, on disk."""
        # Before the line that counts its bytes.
        self._sync_skipped()
        skipped_bytes = self._skipped.tell()
        self.position = BuildPosition(items, taken, self.position.skipped, skipped_bytes)
        self.shards.append(shard)
        self._write({"shard": shard.model_dump(mode="json"), "place": self.position._asdict()})

    def _sync_skipped(self) -> None:
        self._skipped.flush()
        os.fsync(self._skipped.fileno())

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _resume(self, request: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        # The last line may have been cut short by a kill.
        whole_bytes = content.rfind(b"\n") + 1
        self._file.truncate(whole_bytes)
        lines = content[:whole_bytes].splitlines()
        # No shard is finished, so there is nothing to continue; the request may have changed.
        if len(lines) < 2:
            self._clear()
            self._write({"request": request})
            sync(self._folder)
            return
        try:
            self._check_request(json.loads(lines[0])["request"], request)
            for line in lines[1:]:
                entry = json.loads(line)
                self.shards.append(Shard.model_validate(entry["shard"]))
                self.position = BuildPosition(**entry["place"])
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            raise UserError(
                f"{self._folder / FILE_NAME}: damaged ({error}); build again with --overwrite"
            ) from None
        self._check_files()

    def _check_request(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        keys = old.keys() | new.keys()
        changed = sorted(key for key in keys if old.get(key) != new.get(key))
        if changed:
            raise UserError(
                f"{self._folder}: holds a corpus built with other arguments or inputs "
                f"(changed: {', '.join(changed)}); give a fresh folder, or --overwrite to build it anew"
            )

    def _check_files(self) -> None:
        # Sizes, not hashes: the shards may be large, and verify_shards.py reads them.
        for shard in self.shards:
            path = self._folder / shard.file
            if not path.exists() or path.stat().st_size != shard.bytes:
                raise UserError(
                    f"{path}: missing or changed since it was written; build again with --overwrite"
                )
        skipped = self._folder / SKIPPED_NAME
        size = skipped.stat().st_size if skipped.exists() else 0
        if size < self.position.skipped_bytes:
            raise UserError(
                f"{skipped}: cut short since it was written; build again with --overwrite"
            )

    def _clear(self) -> None:
        """Remove what an earlier build left, the mark of a finished corpus first."""
        (self._folder / manifest.FILE_NAME).unlink(missing_ok=True)
        # On disk before anything else goes: after a power failure there must be no manifest without its shards.
        sync(self._folder)
        self._file.truncate(0)
        for pattern in _OURS:
            # Only files that a build writes: the folder is the user's.
            for path in self._folder.glob(pattern):
                path.unlink()
