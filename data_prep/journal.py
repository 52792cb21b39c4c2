"""How far a build has come, so that one that was killed goes on where it was.

`build.jsonl` in the corpus folder: the first line is the request (arguments and fingerprints of all inputs), each
further line a finished shard with the place in the input behind it. A line is on disk before the next shard begins.
`skipped.jsonl` beside it lists the input lines left out. The corpus is finished when `manifest.json` is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import lock_descriptor
from pydantic import ValidationError

from data_prep.files import BadLine
from janus_pt.data import manifest
from janus_pt.data.manifest import Manifest, Shard
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, sync

FILE_NAME = "build.jsonl"
SKIPPED_NAME = "skipped.jsonl"
_OURS = (
    "shard-*.tar",
    "shard-*.idx.npy",
    "shard-*.tmp",
    "tokenizer.model",
    "source_tokenizer.model",
    SKIPPED_NAME,
)


class Place(NamedTuple):
    """Where the next shard begins: items all of whose samples are written, and samples written of the item after."""

    items: int = 0
    taken: int = 0
    skipped: int = 0
    """Lines of `skipped.jsonl`; those of a partly written item are in it."""
    skipped_bytes: int = 0


class Journal:
    """The journal of one corpus folder, held by this process alone until `close`."""

    def __init__(self, folder: Path, request: dict[str, Any], overwrite: bool) -> None:
        """Open or begin the journal; `place` and `shards` tell how far the build is.

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
        self._file = open(path, "a+b")  # noqa: SIM115 - closed in close()
        if not lock_descriptor(self._file.fileno(), blocking=False):
            raise UserError(f"{folder}: another process is building this corpus")
        if overwrite:
            self._clear()
        self.shards: list[Shard] = []
        self.place = Place()
        self._resume(request)
        self.finished = (folder / manifest.FILE_NAME).exists()
        if not self.finished:
            self._skipped = open(folder / SKIPPED_NAME, "ab")  # noqa: SIM115 - closed in close()
            self._skipped.truncate(self.place.skipped_bytes)

    def close(self) -> None:
        """Let go of the folder."""
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
        """List input lines that are left out."""
        for line in bad:
            self._skipped.write(json.dumps(line._asdict(), ensure_ascii=False).encode() + b"\n")
            self.place = self.place._replace(skipped=self.place.skipped + 1)

    def add(self, shard: Shard, items: int, taken: int) -> None:
        """Note a finished shard and the place behind it, on disk."""
        self._sync_skipped()
        self.place = Place(items, taken, self.place.skipped, self._skipped.tell())
        self.shards.append(shard)
        self._write({"shard": shard.model_dump(mode="json"), "place": self.place._asdict()})

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
        whole = content[
            : content.rfind(b"\n") + 1
        ]  # the last line may have been cut short by a kill
        self._file.truncate(len(whole))
        lines = whole.splitlines()
        if len(lines) < 2:  # no shard yet, so there is nothing to go on with
            self._clear()
            self._write({"request": request})
            sync(self._folder)
            return
        try:
            self._check(json.loads(lines[0])["request"], request)
            for entry in map(json.loads, lines[1:]):
                self.shards.append(Shard.model_validate(entry["shard"]))
                self.place = Place(**entry["place"])
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            raise UserError(
                f"{self._folder / FILE_NAME}: damaged ({error}); build again with --overwrite"
            ) from None
        self._check_files()

    def _check(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        changed = ", ".join(
            sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        )
        if changed:
            raise UserError(
                f"{self._folder}: holds a corpus built with other arguments or inputs (changed: {changed}); "
                "give a fresh folder, or --overwrite to build it anew"
            )

    def _check_files(self) -> None:
        for shard in self.shards:
            path = self._folder / shard.file
            if not path.exists() or path.stat().st_size != shard.bytes:
                raise UserError(
                    f"{path}: missing or changed since it was written; build again with --overwrite"
                )
        skipped = self._folder / SKIPPED_NAME
        if self.place.skipped_bytes > (skipped.stat().st_size if skipped.exists() else 0):
            raise UserError(
                f"{skipped}: cut short since it was written; build again with --overwrite"
            )

    def _clear(self) -> None:
        """Remove what an earlier build left, the mark of a finished corpus first."""
        (self._folder / manifest.FILE_NAME).unlink(missing_ok=True)
        sync(self._folder)
        self._file.truncate(0)
        for pattern in _OURS:
            for path in self._folder.glob(pattern):
                path.unlink()
