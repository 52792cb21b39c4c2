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
from janus_pt.data import files
from janus_pt.data.files import Damaged
from janus_pt.data.manifest import FILE_NAME, Manifest, Shard, read_manifest
from janus_pt.data.order import Ints
from janus_pt.packing.example import BOUNDARY_TOKENS, IntArray
from janus_pt.utils.errors import UserError

COLUMNS = 3
"""Columns of an index for each field: byte offset, tokens, CRC-32."""
INDEX_ITEM_BYTES = 8
NPY_HEADER_LIMIT = 10_000
"""Bytes before the data of a `.npy` file; numpy refuses more as well."""


def open_corpus(url: str, cache_dir: str | None = None, keep_open: int = 32) -> Corpus:
    """Open the corpus in a folder, a local path or any fsspec URL.

    Args:
        cache_dir: folder for copies of the files at a URL (`files.local_copy`).
        keep_open: shards whose files and indices are held at a time; a reader that alternates between more of
            them than this is slow.

    Raises:
        UserError: there is none, its manifest is damaged, or it has no samples.
    """
    manifest = read_manifest(url)
    if not manifest.samples:
        raise UserError(f"{url}: the corpus has no samples; build it from files with text in them")
    return Corpus(CorpusFiles(url, manifest, cache_dir), keep_open)


def tokenizer_files(data: DataConfig) -> list[Path]:
    """The corpora's tokenizer on the local disk; and the tokenizer of their sources, if they have their own."""
    # All corpora of a run have the same tokenizers: the loader checks it.
    url = data.train[0].path
    manifest = read_manifest(url)
    return [
        files.local_copy(files.join(url, entry.file), entry.sha256, data.cache_dir)
        for entry in manifest.tokenizers
    ]


class Corpus:
    """Samples by (shard, sample), both counted from 0. Shards and indices are opened when first needed.

    May be sent to another process, which opens its own files.
    """

    def __init__(self, corpus_files: CorpusFiles, keep_open: int) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self._damaged: dict[int, str] = {}
        self._keep_open = keep_open
        self.files = corpus_files
        self._index = lru_cache(keep_open)(corpus_files.read_index)
        self.url = corpus_files.url
        self.manifest = corpus_files.manifest
        self.counts: Ints = np.array(
            [shard.samples for shard in self.manifest.shards], dtype=np.int64
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # File descriptors mean nothing in another process, and the cached indices are large.
        return Corpus, (self.files, self._keep_open)

    def __del__(self) -> None:
        for handle in self._open.values():
            os.close(handle)

    @property
    def longest(self) -> int:
        """No sample's length is above this; known from the manifest alone."""
        return self.manifest.max_tokens + BOUNDARY_TOKENS

    def lengths(self, shard: int) -> Ints:
        """The longest field of each sample of a shard with bos and eos, `[samples]`.

        Raises:
            UserError: the index is missing or damaged.
        """
        tokens = self._index(shard)[:, 1::COLUMNS]
        return tokens.max(axis=1) + BOUNDARY_TOKENS

    def read(self, shard: int, sample: int) -> dict[str, IntArray]:
        """A sample's token ids by field, 1-d, read-only, without bos and eos.

        Raises:
            Damaged: the shard is missing or cut short, or its content is not what the corpus was built with.
            UserError: the index is damaged, the corpus has been replaced, or it cannot be read at present.
        """
        row = self._index(shard)[sample].tolist()
        fields = {}
        try:
            handle = self._handle(shard)
            for number, name in enumerate(self.manifest.fields):
                offset, count, checksum = row[number * COLUMNS : (number + 1) * COLUMNS]
                what = f"sample {sample}, field {name}"
                fields[name] = self._read_field(handle, name, what, offset, count, checksum)
        except Damaged as error:
            raise Damaged(self.files.describe(shard, str(error))) from None
        except OSError as error:
            raise self.files.unreadable(shard, error) from error
        return fields

    def _read_field(
        self, handle: int, name: str, what: str, offset: int, count: int, checksum: int
    ) -> IntArray:
        """The token ids of a field. `Damaged` if they are not those the corpus was built with."""
        dtype = self.files.dtype
        # pread has no file position: threads may share the descriptor.
        content = os.pread(handle, count * dtype.itemsize, offset)
        if len(content) != count * dtype.itemsize:
            raise Damaged(f"{what}: the shard ends before it does")
        # At each reading, since a disk may fail at any time; a CRC-32 costs far less than the reading.
        if zlib.crc32(content) != checksum:
            raise Damaged(f"{what}: its content is not what the corpus was built with")
        tokens: IntArray = np.frombuffer(content, dtype=dtype)
        if not count:
            raise Damaged(f"{what}: it is empty")
        # The checksum stands in the same corpus, which may come from anyone: on a GPU an id out of range
        # would end the process without a message.
        vocab_size = self.manifest.tokenizer_of(name).vocab_size
        if tokens.max() >= vocab_size:
            raise Damaged(f"{what}: token id {tokens.max()} is not below {vocab_size}")
        return tokens

    def _handle(self, shard: int) -> int:
        """A file descriptor of the tar; the one unused for longest is closed to make room."""
        # A remote shard that was refused is not downloaded again for each of its samples.
        if shard in self._damaged:
            raise Damaged(self._damaged[shard])
        if shard not in self._open:
            try:
                self._open[shard] = self.files.open_tar(shard)
            except Damaged as error:
                self._damaged[shard] = str(error)
                raise
            if len(self._open) > self._keep_open:
                _, oldest = self._open.popitem(last=False)
                os.close(oldest)
        self._open.move_to_end(shard)
        return self._open[shard]


@dataclass(frozen=True)
class CorpusFiles:
    """The files of a corpus, opened only if they are what the manifest says."""

    url: str
    manifest: Manifest
    cache_dir: str | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored token ids."""
        return np.dtype(self.manifest.dtype).newbyteorder("<")

    def name(self, number: int) -> str:
        """Path or URL of a shard."""
        return files.join(self.url, self.manifest.shards[number].file)

    def open_tar(self, number: int) -> int:
        """A file descriptor of a shard's tar.

        Raises:
            Damaged: it is missing, or has not the size or (from a URL) the hash that the manifest says.
            UserError: it cannot be opened.
        """
        shard = self.manifest.shards[number]
        try:
            handle = os.open(self._local_copy(shard.file, shard.sha256), os.O_RDONLY)
        except FileNotFoundError as error:
            raise Damaged("no such file") from error
        except OSError as error:
            raise self.unreadable(number, error) from error
        # The size costs nothing and finds files cut short; each sample's content has a checksum of its own.
        size = os.fstat(handle).st_size
        if size != shard.bytes:
            os.close(handle)
            raise Damaged(f"it has {size} bytes, the manifest says {shard.bytes}")
        return handle

    def read_index(self, number: int) -> Ints:
        """For each sample of a shard (offset, tokens, CRC-32) of each field, int64 `[samples, 3 * fields]`.

        All ranks plan from the indices, so a damaged one always ends the run. The array is the end of the
        file, as in every `.npy`; the header is not trusted, and the size is known before memory is taken.

        Raises:
            UserError: it is missing, has not the manifest's hash, or leads out of the shard.
        """
        shard = self.manifest.shards[number]
        shape = (shard.samples, COLUMNS * len(self.manifest.fields))
        data_bytes = math.prod(shape) * INDEX_ITEM_BYTES
        content = self._index_content(number, data_bytes)
        if hashlib.sha256(content).hexdigest() != shard.index_sha256:
            problem = f"{shard.index_file} is not the index the corpus was built with"
            raise UserError(self.describe(number, problem))
        header_bytes = len(content) - data_bytes
        index: Ints = np.frombuffer(content, dtype="<i8", offset=header_bytes).reshape(shape)
        # The hash is the manifest's, which may come from anyone, so the numbers are checked as well.
        outside = self._outside(shard, index)
        if len(outside):
            problem = f"its index puts sample {outside[0]} outside the shard"
            raise UserError(self.describe(number, problem))
        return index

    def _index_content(self, number: int, data_bytes: int) -> bytes:
        """The bytes of an index that should hold `data_bytes` behind its header."""
        shard = self.manifest.shards[number]
        try:
            path = self._local_copy(shard.index_file, shard.index_sha256)
            size = path.stat().st_size
            if not data_bytes <= size <= data_bytes + NPY_HEADER_LIMIT:
                raise Damaged(
                    f"{shard.index_file} has {size} bytes, of which {data_bytes} should be its content"
                )
            return path.read_bytes()
        # `UserError`, not `Damaged`: a rank that skipped samples here would be out of step with the others.
        except (FileNotFoundError, Damaged) as error:
            raise UserError(self.describe(number, f"its index cannot be read: {error}")) from error
        except OSError as error:
            raise self.unreadable(number, error) from error

    def _outside(self, shard: Shard, index: Ints) -> Ints:
        """Samples that do not lie inside the tar or are longer than the manifest allows."""
        offsets = index[:, 0::COLUMNS]
        counts = index[:, 1::COLUMNS]
        wrong_count = (counts < 0) | (counts > min(self.manifest.max_tokens, shard.bytes))
        # Where this product overflows, the count is wrong already.
        last_offset = shard.bytes - counts * self.dtype.itemsize
        wrong_offset = (offsets < 0) | (offsets > last_offset)
        return np.flatnonzero((wrong_count | wrong_offset).any(axis=1))

    def _local_copy(self, name: str, sha256: str) -> Path:
        return files.local_copy(files.join(self.url, name), sha256, self.cache_dir)

    def describe(self, number: int, problem: str) -> str:
        """The message about a shard that has a problem.

        Raises:
            UserError: the cause is that another corpus has replaced this one since it was opened.
        """
        if read_manifest(self.url).fingerprint != self.manifest.fingerprint:
            raise UserError(
                f"{files.join(self.url, FILE_NAME)}: the corpus has been replaced while it was being read; "
                "put it back as it was, or start a new run"
            )
        return f"{self.name(number)}: {problem}; copy or build the corpus again"

    def unreadable(self, number: int, error: OSError) -> UserError:
        """The error to raise when a shard may be whole, but the system cannot read it."""
        return UserError(
            f"{self.name(number)}: cannot be read: {error.strerror}; check the disk and the permissions"
        )
