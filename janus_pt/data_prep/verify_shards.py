"""Check a corpus against its manifest: hashes, counts, the tokenizer, and every sample of every shard.

    janus-pt prep verify corpus

Prints each problem found. Exit code 0: the corpus is whole; 1: it is damaged; 2: there is no finished corpus to check.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import tarfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from janus_pt.data import manifest
from janus_pt.data.corpus import COLUMNS, INDEX_ITEM_BYTES, NPY_HEADER_LIMIT
from janus_pt.data.manifest import FieldName, Manifest, Shard, TokenizerEntry, read_manifest
from janus_pt.data_prep import journal
from janus_pt.data_prep.files import fingerprint
from janus_pt.packing.example import IntArray
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.processes import available_cores, map_in_order, worker_pool

SHOWN_PER_SHARD = 10


class ShardCheck(NamedTuple):
    """One shard to check, as a worker process gets it."""

    folder: Path
    shard: Shard
    first: int
    """Number in its first sample's key."""
    content: Manifest
    """The manifest without its lists of shards and sources."""


def verify(folder: Path, workers: int | None = None) -> Iterator[str]:
    """Yield the problems of the corpus in a local folder, each with the file it is in.

    Raises:
        UserError: there is no finished corpus.
    """
    if not (folder / manifest.FILE_NAME).is_file():
        unfinished = (folder / journal.FILE_NAME).exists()
        raise UserError(
            f"{folder}: {'an unfinished build; run it again' if unfinished else 'no corpus here'}"
        )
    try:
        content = read_manifest(folder)
    except UserError as error:
        yield str(error)
        return
    yield from _check_folder(folder, content)
    # Without the lists, which would be sent with every shard.
    rest = content.model_copy(update={"shards": (), "sources": (), "recipe": None})
    checks = []
    first = 0
    for shard in content.shards:
        key = first if shard.first is None else shard.first
        checks.append(ShardCheck(folder, shard, key, rest))
        first += shard.samples
    workers = min(workers or available_cores(), max(len(checks), 1))
    with worker_pool(workers) as pool, tqdm(total=len(checks), unit="shard") as bar:
        for _, problems in map_in_order(pool, check_shard, checks, ahead=2 * workers):
            bar.update()
            yield from problems


def check_shard(check: ShardCheck) -> list[str]:
    """The first few problems of one shard."""
    problems = []
    try:
        # One more than is shown, to know whether there are more.
        for problem in islice(_shard_problems(check, check.shard), SHOWN_PER_SHARD + 1):
            problems.append(problem)
    # Problems found before the file could not be read further are kept.
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        problems.append(f"cannot be read: {error}")
    if len(problems) > SHOWN_PER_SHARD:
        problems[SHOWN_PER_SHARD:] = ["more problems, not shown"]
    return [f"{check.shard.file}: {problem}" for problem in problems]


def _check_folder(folder: Path, content: Manifest) -> Iterator[str]:
    """Problems of the files beside the shards."""
    for entry in content.tokenizers:
        yield from _tokenizer_problems(folder, entry)
    listed = {shard.file for shard in content.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path.name}: is not in the manifest"
    skipped = folder / journal.SKIPPED_NAME
    lines = len(skipped.read_bytes().splitlines()) if skipped.exists() else 0
    if lines != content.skipped:
        yield f"{skipped.name}: lists {lines} lines, the manifest says {content.skipped}"


def _tokenizer_problems(folder: Path, entry: TokenizerEntry) -> Iterator[str]:
    try:
        tokenizer = load_tokenizer(folder / entry.file)
    except UserError as error:
        yield str(error)
        return
    if tokenizer.fingerprint != entry.sha256:
        yield f"{entry.file}: is not the tokenizer of the manifest: its sha256 is {tokenizer.fingerprint}"
    elif tokenizer.vocab_size != entry.vocab_size:
        yield f"{entry.file}: has {tokenizer.vocab_size} pieces, the manifest says {entry.vocab_size}"


def _shard_problems(check: ShardCheck, shard: Shard) -> Iterator[str]:
    """Problems of a shard's two files, then of its samples."""
    tar = check.folder / shard.file
    index_path = check.folder / shard.index_file
    for path in (tar, index_path):
        if not path.is_file():
            yield f"{path.name} is missing"
            return
    fields: tuple[FieldName, ...] = check.content.fields
    shape = (shard.samples, COLUMNS * len(fields))
    # Before it is read into memory: a damaged or foreign file may have any size.
    if index_path.stat().st_size > NPY_HEADER_LIMIT + math.prod(shape) * INDEX_ITEM_BYTES:
        yield f"{index_path.name} is far too large for {shard.samples} samples"
        return
    if tar.stat().st_size != shard.bytes:
        yield f"has {tar.stat().st_size} bytes, the manifest says {shard.bytes}"
    if fingerprint(tar) != shard.sha256:
        yield "its sha256 differs from the manifest's"
    if fingerprint(index_path) != shard.index_sha256:
        yield f"the sha256 of {index_path.name} differs from the manifest's"
    index = _npy_array(index_path.read_bytes())
    # Without the right shape nothing below can be compared.
    if index.dtype != np.int64 or index.shape != shape:
        yield f"{index_path.name} is {index.dtype} {index.shape}"
        return
    for number, name in enumerate(fields):
        tokens = int(index[:, COLUMNS * number + 1].sum())
        if tokens != shard.tokens[name]:
            yield f"{index_path.name}: the {name} tokens do not add up to the manifest's {shard.tokens[name]}"
    yield from _sample_problems(check, tar, index)


def _sample_problems(check: ShardCheck, tar: Path, index: IntArray) -> Iterator[str]:
    """Compare the tar, member by member, with its index and the manifest."""
    expected = _expected_members(check, index)
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            name, offset, count, checksum = next(expected, ("nothing more", 0, 0, 0))
            # After a member too many or too few all others would differ as well.
            if member.name != name:
                yield f"member {member.name} where {name} should be"
                return
            yield from _member_problems(check.content, archive, member, offset, count, checksum)
    missing = next(expected, None)
    if missing is not None:
        yield f"ends before member {missing[0]}"


def _expected_members(check: ShardCheck, index: IntArray) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, offset, tokens and CRC-32 of each member, in the order of the tar."""
    for row in range(len(index)):
        key = f"{check.first + row:09d}"
        for number, name in enumerate(check.content.fields):
            columns = index[row, COLUMNS * number : COLUMNS * (number + 1)]
            offset, count, checksum = columns.tolist()
            yield f"{key}.{name}.npy", offset, count, checksum


def _member_problems(
    content: Manifest,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    offset: int,
    count: int,
    checksum: int,
) -> Iterator[str]:
    """Problems of one member; the three numbers are its entry in the index."""
    # A link could lead out of the tar, and a member of any size would take as much memory.
    if not member.isreg() or member.size > count * 8 + NPY_HEADER_LIMIT:
        yield f"{member.name}: is no plain file of {count} token ids"
        return
    file = archive.extractfile(member)
    try:
        ids = _npy_array(file.read() if file else b"")
    except (ValueError, EOFError, OSError) as error:
        yield f"{member.name}: cannot be read: {error}"
        return
    dtype = np.dtype(content.dtype).newbyteorder("<")
    if ids.dtype != dtype or ids.shape != (count,):
        yield f"{member.name}: is {ids.dtype} {ids.shape}, the index says {content.dtype} ({count},)"
        return
    # The token ids are the end of the member, behind the header of `.npy`.
    if member.offset_data + member.size - ids.nbytes != offset:
        yield f"{member.name}: its tokens are not at byte {offset}, where the index says"
    if zlib.crc32(ids.tobytes()) != checksum:
        yield f"{member.name}: its content is not what the index was made from"
    if count > content.max_tokens:
        yield f"{member.name}: {count} tokens, more than {content.max_tokens}"
    field = member.name.split(".")[1]
    vocab_size = content.tokenizer_of(field).vocab_size
    if count and int(ids.max()) >= vocab_size:
        yield f"{member.name}: token id {ids.max()} is not below {vocab_size}"


def _npy_array(content: bytes) -> IntArray:
    """The array of an `.npy` file. `ValueError` if its header promises more than follows, before memory is taken."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format is not what the builder writes")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # The header is parsed as Python text, and every error of that comes through.
    except Exception as error:
        raise ValueError(f"its header is broken: {error}") from None
    if math.prod(shape) * dtype.itemsize > len(content):
        raise ValueError(f"it is cut short: its header promises {dtype} {shape}")
    file.seek(0)
    array: IntArray = np.load(file, allow_pickle=False)
    return array


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep verify`."""
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: all cores)")


def run(args: argparse.Namespace) -> None:
    """Check the corpus; leaves with exit code 1 if it is damaged."""
    problems = 0
    for problem in verify(args.corpus, args.workers):
        # Flushed, since checking a large corpus takes long.
        print(problem, flush=True)
        problems += 1
    if problems:
        print(f"{args.corpus}: damaged; copy it again or build it again")
        sys.exit(1)
    print(f"{args.corpus}: whole, {read_manifest(args.corpus).samples:,} samples")
