"""One shard: a plain WebDataset tar and its sidecar index, there whole or not at all, the same bytes every time."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from janus_pt.data.manifest import Shard
from janus_pt.utils.files import file_hash, sync

TAR_HEADER = 512
Tokens = np.ndarray[Any, np.dtype[Any]]


class ShardFile:
    """A shard being written. It lies under a temporary name until `close`."""

    def __init__(self, folder: Path, number: int, fields: tuple[str, ...]) -> None:
        # Imported here: webdataset loads torch, which the worker processes that import this package can do without.
        from webdataset.writer import TarWriter

        self._path = folder / f"shard-{number:06d}.tar"
        self._fields = fields
        self._index: list[list[int]] = []
        self._file = open(_temporary(self._path), "wb")  # noqa: SIM115 - closed in close()
        self._tar = TarWriter(self._file, user="janus_pt", group="janus_pt", mtime=0, encoder=False)

    @property
    def samples(self) -> int:
        """Samples written so far."""
        return len(self._index)

    def write(self, number: int, sample: tuple[Tokens, ...]) -> None:
        """Add a sample: its number in the corpus, and its token ids by field."""
        members = {
            f"{name}.npy": npy_bytes(ids) for name, ids in zip(self._fields, sample, strict=True)
        }
        row = []
        offset = self._tar.tarstream.offset
        for (_, content), ids in zip(sorted(members.items()), sample, strict=True):
            offset += TAR_HEADER
            row += [offset + len(content) - ids.nbytes, len(ids), zlib.crc32(ids.tobytes())]
            offset += -(-len(content) // TAR_HEADER) * TAR_HEADER
        self._tar.write({"__key__": f"{number:09d}", **members})
        assert self._tar.tarstream.offset == offset
        self._index.append(row)

    def close(self) -> Shard:
        """Finish both files, put them on disk and give them their names."""
        self._tar.close()
        self._file.close()
        index = np.array(self._index, dtype="<i8")
        index_path = self._path.with_suffix(".idx.npy")
        _temporary(index_path).write_bytes(npy_bytes(index))
        for path in (index_path, self._path):
            sync(_temporary(path))
            os.replace(_temporary(path), path)
        sync(self._path.parent)
        return Shard(
            file=self._path.name,
            samples=len(index),
            tokens={name: int(index[:, 3 * i + 1].sum()) for i, name in enumerate(self._fields)},
            bytes=self._path.stat().st_size,
            sha256=file_hash(self._path),
            index_sha256=file_hash(index_path),
        )


def npy_bytes(array: Tokens) -> bytes:
    """The array as an `.npy` file; its data are the last `array.nbytes` bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
