"""One shard: a plain WebDataset tar and its sidecar index, there whole or not at all, the same bytes every time."""

from __future__ import annotations

import io
import os
import zlib
from math import ceil
from pathlib import Path

import numpy as np

from janus_pt.data.corpus import COLUMNS
from janus_pt.data.manifest import Shard
from janus_pt.packing.example import IntArray
from janus_pt.utils.files import file_hash, sync

TAR_BLOCK = 512
"""Bytes of a tar's block; each member has a header of one."""


class ShardFile:
    """A shard being written, under a temporary name until `close`.

    Any source of samples may write shards with it: `write` each sample, then `close`, which gives the manifest's entry.
    """

    def __init__(
        self, folder: Path, number: int, fields: tuple[str, ...], prefix: str = "shard"
    ) -> None:
        """Open shard `number` of the corpus in `folder`; `fields` are the names of a sample's token arrays."""
        # Imported here: webdataset loads torch, which the worker processes that import this package do not need.
        from webdataset.writer import TarWriter

        # TarWriter writes members in the order of their names; the index has them in the order of the fields.
        assert tuple(sorted(fields)) == fields
        self._path = folder / f"{prefix}-{number:06d}.tar"
        self._fields = fields
        self._index: list[list[int]] = []
        self._file = open(_temporary(self._path), "wb")  # noqa: SIM115 - closed in close()
        # No user, time or other trace of this machine: the same samples give the same bytes.
        self._tar = TarWriter(self._file, user="janus_pt", group="janus_pt", mtime=0, encoder=False)

    @property
    def samples(self) -> int:
        """Samples written so far."""
        return len(self._index)

    def write(self, number: int, sample: tuple[IntArray, ...]) -> None:
        """Add a sample: its number in the corpus, and its token ids by field."""
        members = {}
        row: list[int] = []
        offset = self._tar.tarstream.offset
        for name, ids in zip(self._fields, sample, strict=True):
            content = npy_bytes(ids)
            members[f"{name}.npy"] = content
            offset += TAR_BLOCK  # the member's header
            # The token ids are the end of the member, behind the header of `.npy`.
            data_offset = offset + len(content) - ids.nbytes
            row += [data_offset, len(ids), zlib.crc32(ids.tobytes())]
            # Members fill whole blocks.
            offset += ceil(len(content) / TAR_BLOCK) * TAR_BLOCK
        self._tar.write({"__key__": f"{number:09d}", **members})
        assert self._tar.tarstream.offset == offset
        self._index.append(row)

    def close(self) -> Shard:
        """Finish both files, put them on disk and give them their names. Returns the manifest's entry."""
        self._tar.close()
        self._file.close()
        index = np.array(self._index, dtype="<i8")
        index_path = self._path.with_suffix(".idx.npy")
        _temporary(index_path).write_bytes(npy_bytes(index))
        # The index first: a tar with its final name always has an index.
        for path in (index_path, self._path):
            sync(_temporary(path))
            os.replace(_temporary(path), path)
        sync(self._path.parent)
        tokens = {}
        for column, name in enumerate(self._fields):
            tokens[name] = int(index[:, COLUMNS * column + 1].sum())
        return Shard(
            file=self._path.name,
            samples=len(index),
            tokens=tokens,
            bytes=self._path.stat().st_size,
            sha256=file_hash(self._path),
            index_sha256=file_hash(index_path),
        )


def npy_bytes(array: IntArray) -> bytes:
    """The array as an `.npy` file; its data are the last `array.nbytes` bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
