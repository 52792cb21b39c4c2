"""A corpus opened for reading: random access to samples through the shards' sidecar indices."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from janus_pt.config import DataConfig
from janus_pt.data import store
from janus_pt.data.manifest import Manifest, Shard, read_manifest
from janus_pt.data.order import Ints
from janus_pt.errors import UserError

BOUNDARIES = 2
"""bos and eos, which are not stored."""

Tokens = np.ndarray[Any, np.dtype[Any]]


def open_corpus(url: str, cache_dir: str | None = None, keep_open: int = 32) -> Corpus:
    """Open the corpus in a folder, a local path or any fsspec URL.

    Args:
        cache_dir: where what is fetched from a URL is kept (`store.local_copy`).
        keep_open: shards whose files and indices are held at a time; a reader that goes to and fro among more of
            them than this is slow.

    Raises:
        UserError: there is none, its manifest is damaged, or it has no samples.
    """
    manifest = read_manifest(url)
    if not manifest.samples:
        raise UserError(f"{url}: the corpus has no samples; build it from files with text in them")
    return Corpus(Files(url, manifest, cache_dir), keep_open)


def tokenizer_file(data: DataConfig) -> Path:
    """The corpora's tokenizer on the local disk."""
    url = data.train[0].path
    tokenizer = read_manifest(url).tokenizer
    return store.local_copy(store.join(url, tokenizer.file), tokenizer.sha256, data.cache_dir)


class Corpus:
    """Samples by (shard, sample), both counted from 0. Nothing is read before it is asked for.

    May be sent to another process, which opens its own files.
    """

    def __init__(self, files: Files, keep_open: int) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self._keep_open = keep_open
        self.files = files
        self._index = lru_cache(keep_open)(files.read_index)
        self.url = files.url
        self.manifest = files.manifest
        self.counts: Ints = np.array([shard.samples for shard in files.manifest.shards], dtype=np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus, (self.files, self._keep_open)

    def __del__(self) -> None:
        for handle in self._open.values():
            os.close(handle)

    @property
    def longest(self) -> int:
        """No sample's length is above this; known without reading any."""
        return self.manifest.max_tokens + BOUNDARIES

    def lengths(self, shard: int) -> Ints:
        """The longest field of each sample of a shard with bos and eos, `[samples]`.

        Raises:
            UserError: the index is missing or damaged.
        """
        return self._index(shard)[:, 1::2].max(axis=1) + BOUNDARIES

    def read(self, shard: int, sample: int) -> dict[str, Tokens]:
        """A sample's token ids by field, 1-d, read-only, without bos and eos.

        Raises:
            UserError: the shard or its index is missing, cut short or damaged.
        """
        row = self._index(shard)[sample].tolist()
        handle, dtype = self._handle(shard), self.files.dtype
        fields = {}
        for name, offset, count in zip(self.manifest.fields, row[::2], row[1::2], strict=True):
            content = os.pread(handle, count * dtype.itemsize, offset)
            if len(content) != count * dtype.itemsize:
                raise self.files.damaged(shard, f"sample {sample}, field {name}: the shard ends before it does")
            fields[name] = np.frombuffer(content, dtype=dtype)
        return fields

    def _handle(self, shard: int) -> int:
        """A file descriptor of the tar; the one unused for longest is closed to make room."""
        if shard not in self._open:
            self._open[shard] = self.files.open_tar(shard)
            if len(self._open) > self._keep_open:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]


@dataclass(frozen=True)
class Files:
    """The files of a corpus, opened only if they are what the manifest says."""

    url: str
    manifest: Manifest
    cache_dir: str | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored token ids."""
        return np.dtype(self.manifest.dtype).newbyteorder("<")

    def open_tar(self, number: int) -> int:
        """A file descriptor of a shard's tar."""
        shard = self.manifest.shards[number]
        try:
            handle = os.open(self._local(shard.file, shard.sha256), os.O_RDONLY)
        except OSError as error:
            raise self.damaged(number, f"it cannot be opened: {error.strerror}") from error
        size = os.fstat(handle).st_size
        if size != shard.bytes:
            os.close(handle)
            raise self.damaged(number, f"it has {size} bytes, the manifest says {shard.bytes}")
        return handle

    def read_index(self, number: int) -> Ints:
        """For each sample of a shard (offset, tokens) of each field, int64 `[samples, 2 * fields]`."""
        shard = self.manifest.shards[number]
        try:
            index = np.load(self._local(shard.index_file, shard.index_sha256), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self.damaged(number, f"its index cannot be read: {error}") from error
        expected = (shard.samples, 2 * len(self.manifest.fields))
        if index.dtype != np.int64 or index.shape != expected:
            raise self.damaged(number, f"its index is {index.dtype} {index.shape}, not int64 {expected}")
        outside = self._outside(shard, index[:, ::2], index[:, 1::2])
        if len(outside):
            raise self.damaged(number, f"its index puts sample {outside[0]} outside the shard")
        return index

    def _outside(self, shard: Shard, offsets: Ints, counts: Ints) -> Ints:
        """Samples that do not lie inside the tar or are longer than the manifest allows."""
        too_long = (counts < 0) | (counts > min(self.manifest.max_tokens, shard.bytes))
        beyond = (offsets < 0) | (offsets > shard.bytes - counts * self.dtype.itemsize)
        return np.flatnonzero((too_long | beyond).any(axis=1))

    def _local(self, name: str, sha256: str) -> Path:
        return store.local_copy(store.join(self.url, name), sha256, self.cache_dir)

    def damaged(self, number: int, problem: str) -> UserError:
        """What to raise when a shard is not what it should be."""
        shard = store.join(self.url, self.manifest.shards[number].file)
        return UserError(f"{shard}: {problem}; copy or build the corpus again")
