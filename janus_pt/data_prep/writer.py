"""One shard: a plain WebDataset tar and its sidecar index, there whole or not at all, the same bytes every time."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np

from janus_pt.data.corpus import COLUMNS
from janus_pt.data.manifest import Shard
from janus_pt.packing.example import IntArray
from janus_pt.utils.files import file_hash, sync

TAR_BLOCK = 512
"""Bytes of a tar's block; each member has a header of one."""
_CHECKSUM = slice(148, 154)
"""Where a member's header has its checksum, in octal digits."""


class ShardFile:
    """A shard being written, under a temporary name until `close`.

    Any source of samples may write shards with it: `write` each sample, then `close`, which gives the manifest's entry.
    """

    def __init__(
        self, folder: Path, number: int, fields: tuple[str, ...], prefix: str = "shard"
    ) -> None:
        """Open shard `number` of the corpus in `folder`; `fields` are the names of a sample's token arrays."""
        # Members are in the order of their names, as from webdataset's writer; the index has them in the fields' order.
        assert tuple(sorted(fields)) == fields
        self._path = folder / f"{prefix}-{number:06d}.tar"
        self._fields = fields
        self._index: list[list[int]] = []
        self._file = open(_temporary(self._path), "wb")  # noqa: SIM115 - closed in close()
        self._size = 0

    @property
    def samples(self) -> int:
        """Samples written so far."""
        return len(self._index)

    def write(self, number: int, sample: tuple[IntArray, ...]) -> None:
        """Add a sample: its number in the corpus, and its token ids by field."""
        row: list[int] = []
        for name, ids in zip(self._fields, sample, strict=True):
            content = ids.tobytes()
            head = _npy_head(ids.dtype.str, len(ids))
            size = len(head) + len(content)
            padding = -size % TAR_BLOCK
            member = f"{number:09d}.{name}.npy".encode()
            self._file.write(_member_head(member, size) + head + content + bytes(padding))
            # The token ids are the end of the member, behind the header of `.npy`.
            row += [self._size + TAR_BLOCK + len(head), len(ids), zlib.crc32(content)]
            self._size += TAR_BLOCK + size + padding
        self._index.append(row)

    def close(self) -> Shard:
        """Finish both files, put them on disk and give them their names. Returns the manifest's entry."""
        # A tar ends with two empty blocks, and fills whole records.
        end = self._size + 2 * TAR_BLOCK
        self._file.write(bytes(ceil(end / tarfile.RECORDSIZE) * tarfile.RECORDSIZE - self._size))
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


@lru_cache(maxsize=2**14)
def _npy_head(dtype: str, length: int) -> bytes:
    """What `.npy` has before the data of a row of numbers."""
    ids = np.zeros(length, dtype)
    return npy_bytes(ids)[: -ids.nbytes or None]


@lru_cache(maxsize=2**14)
def _nameless_head(size: int) -> tuple[bytes, int]:
    """A tar member's header without its name, and the sum of its bytes.

    To make one takes the standard library longer than all else that is done for a short sample.
    """
    # No user, time or other trace of this machine: the same samples give the same bytes.
    entry = tarfile.TarInfo()
    entry.size, entry.mode, entry.uname, entry.gname = size, 0o444, "janus_pt", "janus_pt"
    head = entry.tobuf(tarfile.USTAR_FORMAT)
    total = int(head[_CHECKSUM], 8)
    return head, total


def _member_head(name: bytes, size: int) -> bytes:
    """The header of a member, with a name of at most 100 bytes."""
    head, total = _nameless_head(size)
    # The name comes first, and the checksum is the sum of all bytes, its own place counted as spaces.
    checksum = b"%06o" % (total + sum(name))
    return name + head[len(name) : _CHECKSUM.start] + checksum + head[_CHECKSUM.stop :]


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
