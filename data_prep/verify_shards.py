"""Check a corpus against its manifest: hashes, counts, the tokenizer, and every sample of every shard.

    python data_prep/verify_shards.py corpus

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
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data_prep import journal
from data_prep.files import fingerprint
from janus_pt.data import manifest
from janus_pt.data.corpus import NPY_HEADER_LIMIT
from janus_pt.data.manifest import Manifest, Shard, read_manifest
from janus_pt.data.manifest import Tokenizer as Entry
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError, entry_point
from janus_pt.utils.processes import available_cores, map_in_order, worker_pool

SHOWN_PER_SHARD = 10
Tokens = np.ndarray[Any, np.dtype[Any]]


class Task(NamedTuple):
    """One shard to check."""

    folder: Path
    shard: Shard
    first: int
    """Number of its first sample in the corpus."""
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
    rest = content.model_copy(update={"shards": (), "sources": ()})
    first = accumulate((shard.samples for shard in content.shards), initial=0)
    tasks = [
        Task(folder, shard, number, rest)
        for shard, number in zip(content.shards, first, strict=False)
    ]
    workers = min(workers or available_cores(), max(len(tasks), 1))
    with worker_pool(workers) as pool, tqdm(total=len(tasks), unit="shard") as bar:
        for _, problems in map_in_order(pool, check_shard, tasks, ahead=2 * workers):
            bar.update()
            yield from problems


def check_shard(task: Task) -> list[str]:
    """The first few problems of one shard."""
    problems = []
    try:
        for problem in islice(_shard_problems(task, task.shard), SHOWN_PER_SHARD + 1):
            problems.append(problem)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        problems.append(f"cannot be read: {error}")
    if len(problems) > SHOWN_PER_SHARD:
        problems[SHOWN_PER_SHARD:] = ["more problems, not shown"]
    return [f"{task.shard.file}: {problem}" for problem in problems]


def _check_folder(folder: Path, content: Manifest) -> Iterator[str]:
    """Problems of the files beside the shards."""
    for entry in (content.tokenizer, content.source_tokenizer):
        if entry:
            yield from _tokenizer_problems(folder, entry)
    listed = {shard.file for shard in content.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path.name}: is not in the manifest"
    skipped = folder / journal.SKIPPED_NAME
    lines = len(skipped.read_bytes().splitlines()) if skipped.exists() else 0
    if lines != content.skipped:
        yield f"{skipped.name}: lists {lines} lines, the manifest says {content.skipped}"


def _tokenizer_problems(folder: Path, entry: Entry) -> Iterator[str]:
    try:
        tokenizer = Tokenizer.load(folder / entry.file)
    except UserError as error:
        yield str(error)
        return
    if tokenizer.fingerprint != entry.sha256:
        yield f"{entry.file}: is not the tokenizer of the manifest: its sha256 is {tokenizer.fingerprint}"
    elif tokenizer.vocab_size != entry.vocab_size:
        yield f"{entry.file}: has {tokenizer.vocab_size} pieces, the manifest says {entry.vocab_size}"


def _shard_problems(task: Task, shard: Shard) -> Iterator[str]:
    tar, index_path = task.folder / shard.file, task.folder / shard.index_file
    for path in (tar, index_path):
        if not path.is_file():
            yield f"{path.name} is missing"
            return
    if index_path.stat().st_size > NPY_HEADER_LIMIT + shard.samples * 24 * len(task.content.fields):
        yield f"{index_path.name} is far too large for {shard.samples} samples"
        return
    if tar.stat().st_size != shard.bytes:
        yield f"has {tar.stat().st_size} bytes, the manifest says {shard.bytes}"
    if fingerprint(tar) != shard.sha256:
        yield "its sha256 is not that of the manifest"
    if fingerprint(index_path) != shard.index_sha256:
        yield f"the sha256 of {index_path.name} is not that of the manifest"
    index = _npy_array(index_path.read_bytes())
    if index.dtype != np.int64 or index.shape != (shard.samples, 3 * len(task.content.fields)):
        yield f"{index_path.name} is {index.dtype} {index.shape}"
        return
    promised = {str(name): count for name, count in shard.tokens.items()}
    for column, name in enumerate(task.content.fields):
        if int(index[:, 3 * column + 1].sum()) != promised[name]:
            yield f"{index_path.name}: the {name} tokens do not add up to the manifest's {promised[name]}"
    yield from _sample_problems(task, tar, index)


def _sample_problems(task: Task, tar: Path, index: Tokens) -> Iterator[str]:
    """Compare the tar, member by member, with what its index and the manifest promise."""
    fields = task.content.fields
    promised = (
        (f"{task.first + row:09d}.{name}.npy", *index[row, 3 * column : 3 * column + 3].tolist())
        for row in range(len(index))
        for column, name in enumerate(fields)
    )
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            name, *place = next(promised, ("nothing more", 0, 0, 0))
            if member.name != name:
                yield f"member {member.name} where {name} should be"
                return
            yield from _member_problems(task.content, archive, member, *place)
    if missing := next(promised, None):
        yield f"ends before member {missing[0]}"


def _member_problems(
    content: Manifest,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    offset: int,
    count: int,
    checksum: int,
) -> Iterator[str]:
    if not member.isreg() or member.size > count * 8 + NPY_HEADER_LIMIT:
        yield f"{member.name}: is no plain file of {count} token ids"
        return
    file = archive.extractfile(member)
    try:
        ids = _npy_array(file.read() if file else b"")
    except (ValueError, EOFError, OSError) as error:
        yield f"{member.name}: cannot be read: {error}"
        return
    if ids.dtype != np.dtype(content.dtype).newbyteorder("<") or ids.shape != (count,):
        yield f"{member.name}: is {ids.dtype} {ids.shape}, the index says {content.dtype} ({count},)"
        return
    if member.offset_data + member.size - ids.nbytes != offset:
        yield f"{member.name}: its tokens are not at byte {offset}, where the index says"
    if zlib.crc32(ids.tobytes()) != checksum:
        yield f"{member.name}: its content is not what the index was made from"
    if count > content.max_tokens:
        yield f"{member.name}: {count} tokens, more than {content.max_tokens}"
    vocab_size = content.tokenizer_of(member.name.split(".")[1]).vocab_size
    if count and int(ids.max()) >= vocab_size:
        yield f"{member.name}: token id {ids.max()} is not below {vocab_size}"


def _npy_array(content: bytes) -> Tokens:
    """The array of an `.npy` file. `ValueError` if its header promises more than follows, before memory is taken."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format is not what the builder writes")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except (
        Exception
    ) as error:  # the header is parsed as Python text, and whatever that raises comes through
        raise ValueError(f"its header is broken: {error}") from None
    if math.prod(shape) * dtype.itemsize > len(content):
        raise ValueError(f"it is cut short: its header promises {dtype} {shape}")
    file.seek(0)
    array: Tokens = np.load(file, allow_pickle=False)
    return array


def main() -> None:
    """Check the corpus of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: all cores)")
    given = parser.parse_args()
    found = 0
    for problem in verify(given.corpus, given.workers):
        print(problem, flush=True)
        found += 1
    if found:
        print(f"{given.corpus}: damaged; copy it again or build it again")
        sys.exit(1)
    print(f"{given.corpus}: whole, {read_manifest(given.corpus).samples:,} samples")


if __name__ == "__main__":
    entry_point(main)
