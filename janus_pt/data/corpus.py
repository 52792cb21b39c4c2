"""A corpus opened for reading: random access to samples through the shards' sidecar indices."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from janus_pt.config.schema import DataConfig
from janus_pt.data import files as store
from janus_pt.data.files import Damaged
from janus_pt.data.manifest import FILE_NAME, Manifest, Shard, read_manifest
from janus_pt.data.order import Ints
from janus_pt.utils.errors import UserError

BOUNDARIES = 2
"""bos and eos, which are not stored."""
NPY_HEADER_LIMIT = 10_000
"""Bytes before the data of a `.npy` file; numpy refuses more, too."""

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


def tokenizer_files(data: DataConfig) -> list[Path]:
    """The corpora's tokenizer on the local disk; and that of their sources, if they have one of their own."""
    url = data.train[0].path
    manifest = read_manifest(url)
    entries = [entry for entry in (manifest.tokenizer, manifest.source_tokenizer) if entry]
    return [
        store.local_copy(store.join(url, entry.file), entry.sha256, data.cache_dir)
        for entry in entries
    ]


class Corpus:
    """Samples by (shard, sample), both counted from 0. Nothing is read before it is asked for.

    May be sent to another process, which opens its own files.
    """

    def __init__(self, files: Files, keep_open: int) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self._damaged: dict[int, str] = {}
        self._keep_open = keep_open
        self.files = files
        self._index = lru_cache(keep_open)(files.read_index)
        self.url = files.url
        self.manifest = files.manifest
        self.counts: Ints = np.array(
            [shard.samples for shard in files.manifest.shards], dtype=np.int64
        )

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
        return self._index(shard)[:, 1::3].max(axis=1) + BOUNDARIES

    def read(self, shard: int, sample: int) -> dict[str, Tokens]:
        """A sample's token ids by field, 1-d, read-only, without bos and eos.

        Raises:
            Damaged: the shard is missing or cut short, or what it holds is not what the corpus was built with.
            UserError: the index is damaged, the corpus has been replaced, or it cannot be read at present.
        """
        row = self._index(shard)[sample].tolist()
        columns = zip(self.manifest.fields, row[::3], row[1::3], row[2::3], strict=True)
        try:
            handle = self._handle(shard)
            return {
                name: self._field(handle, name, f"sample {sample}, field {name}", *place)
                for name, *place in columns
            }
        except Damaged as error:
            raise Damaged(self.files.described(shard, str(error))) from None
        except OSError as error:
            raise self.files.unreadable(shard, error) from error

    def _field(
        self, handle: int, name: str, what: str, offset: int, count: int, checksum: int
    ) -> Tokens:
        """The token ids of a field, if they are those the corpus was built with."""
        dtype = self.files.dtype
        content = os.pread(handle, count * dtype.itemsize, offset)
        if len(content) != count * dtype.itemsize:
            raise Damaged(f"{what}: the shard ends before it does")
        if zlib.crc32(content) != checksum:
            raise Damaged(f"{what}: its content is not what the corpus was built with")
        tokens: Tokens = np.frombuffer(content, dtype=dtype)
        if not count:
            raise Damaged(f"{what}: it is empty")
        vocab_size = self.manifest.tokenizer_of(name).vocab_size
        if tokens.max() >= vocab_size:
            raise Damaged(f"{what}: token id {tokens.max()} is not below {vocab_size}")
        return tokens

    def _handle(self, shard: int) -> int:
        """A file descriptor of the tar; the one unused for longest is closed to make room."""
        if shard in self._damaged:
            raise Damaged(self._damaged[shard])
        if shard not in self._open:
            try:
                self._open[shard] = self.files.open_tar(shard)
            except Damaged as error:
                self._damaged[shard] = str(error)
                raise
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
        """A file descriptor of a shard's tar.

        Raises:
            Damaged: it is missing, or has not the size or (from a URL) the hash that the manifest says.
            UserError: it cannot be opened.
        """
        shard = self.manifest.shards[number]
        try:
            handle = os.open(self._local(shard.file, shard.sha256), os.O_RDONLY)
        except FileNotFoundError as error:
            raise Damaged("no such file") from error
        except OSError as error:
            raise self.unreadable(number, error) from error
        size = os.fstat(handle).st_size
        if size != shard.bytes:
            os.close(handle)
            raise Damaged(f"it has {size} bytes, the manifest says {shard.bytes}")
        return handle

    def read_index(self, number: int) -> Ints:
        """For each sample of a shard (offset, tokens, CRC-32) of each field, int64 `[samples, 3 * fields]`.

        All ranks plan from the indices, so one that is damaged always ends the run. The array is what stands at
        the file's end, as in every `.npy`; no header is believed, and the size is known before memory is taken.

        Raises:
            UserError: it is missing, has not the manifest's hash, or leads out of the shard.
        """
        shard = self.manifest.shards[number]
        shape = (shard.samples, 3 * len(self.manifest.fields))
        content = self._index_content(number, math.prod(shape) * 8)
        if hashlib.sha256(content).hexdigest() != shard.index_sha256:
            raise UserError(
                self.described(
                    number, f"{shard.index_file} is not the index the corpus was built with"
                )
            )
        index: Ints = np.frombuffer(
            content, dtype="<i8", offset=len(content) - math.prod(shape) * 8
        ).reshape(shape)
        outside = self._outside(shard, index[:, ::3], index[:, 1::3])
        if len(outside):
            raise UserError(
                self.described(number, f"its index puts sample {outside[0]} outside the shard")
            )
        return index

    def _index_content(self, number: int, data: int) -> bytes:
        """The bytes of an index that should hold `data` bytes behind its header."""
        shard = self.manifest.shards[number]
        try:
            path = self._local(shard.index_file, shard.index_sha256)
            size = path.stat().st_size
            if not data <= size <= data + NPY_HEADER_LIMIT:
                raise Damaged(
                    f"{shard.index_file} has {size} bytes, of which {data} should be its content"
                )
            return path.read_bytes()
        except (FileNotFoundError, Damaged) as error:
            raise UserError(self.described(number, f"its index cannot be read: {error}")) from error
        except OSError as error:
            raise self.unreadable(number, error) from error

    def _outside(self, shard: Shard, offsets: Ints, counts: Ints) -> Ints:
        """Samples that do not lie inside the tar or are longer than the manifest allows."""
        too_long = (counts < 0) | (counts > min(self.manifest.max_tokens, shard.bytes))
        beyond = (offsets < 0) | (offsets > shard.bytes - counts * self.dtype.itemsize)
        return np.flatnonzero((too_long | beyond).any(axis=1))

    def _local(self, name: str, sha256: str) -> Path:
        return store.local_copy(store.join(self.url, name), sha256, self.cache_dir)

    def described(self, number: int, problem: str) -> str:
        """What to tell of a shard that is not what it should be.

        Raises:
            UserError: the reason is that another corpus has taken this one's place since it was opened.
        """
        if read_manifest(self.url).fingerprint != self.manifest.fingerprint:
            raise UserError(
                f"{store.join(self.url, FILE_NAME)}: the corpus has been replaced while it was being read; "
                "put it back as it was, or start a new run"
            )
        return f"{self.name(number)}: {problem}; copy or build the corpus again"

    def unreadable(self, number: int, error: OSError) -> UserError:
        """What to raise when a shard may be whole, but the system does not give it out."""
        return UserError(
            f"{self.name(number)}: cannot be read: {error.strerror}; see to the disk or the permissions"
        )

    def name(self, number: int) -> str:
        """Path or URL of a shard."""
        return store.join(self.url, self.manifest.shards[number].file)
