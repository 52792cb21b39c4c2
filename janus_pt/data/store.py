"""Files of a corpus wherever they lie: a local path, or any URL fsspec understands (kept in a local cache)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import fsspec

from janus_pt.errors import UserError

CHUNK = 1 << 20


def join(folder: str, name: str) -> str:
    """Path or URL of a file in a folder given as path or URL."""
    return f"{folder.rstrip('/')}/{name}"


def local_path(url: str) -> Path | None:
    """The path a URL names on this machine (`file://` or no scheme at all); None for anything remote."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    return None if "://" in url else Path(url).expanduser()


def read_bytes(url: str, limit: int) -> bytes:
    """A small file's content.

    Raises:
        UserError: it cannot be read, or has more than `limit` bytes.
    """
    with _readable(url) as file:
        size = getattr(file, "size", None) or 0
        content = file.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise UserError(f"{url}: larger than {limit} bytes; this is not the file it should be")
    return content


def local_copy(url: str, sha256: str, cache_dir: str | Path | None = None) -> Path:
    """A path at which the file can be opened: its own if it is local, else that of a copy in the cache.

    A remote file is downloaded once, whatever the number of processes that ask, and enters the cache only when
    its hash is `sha256`: what lies in the cache is whole. Local files are not hashed.

    Args:
        url: path or fsspec URL.
        sha256: the content's hash in hexadecimal, which is also the copy's name.
        cache_dir: where copies are kept; default `.cache/janus_pt` in the home folder.

    Raises:
        UserError: the file cannot be read or has another hash.
    """
    path = local_path(url)
    if path is not None:
        return path
    folder = Path(cache_dir or "~/.cache/janus_pt").expanduser() / sha256[:2]
    copy = folder / f"{sha256}{PurePosixPath(url).suffix}"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not copy.exists():
                _download(url, sha256, copy)
    return copy


def _download(url: str, sha256: str, copy: Path) -> None:
    digest = hashlib.sha256()
    part = copy.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        with part.open("wb") as target, _readable(url) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        if digest.hexdigest() != sha256:
            raise UserError(
                f"{url}: its sha256 is {digest.hexdigest()}, the corpus was built with {sha256}; "
                "the file is damaged or has been replaced: copy or build the corpus again"
            )
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _readable(url: str) -> Iterator[IO[bytes]]:
    """The file opened for reading; whatever the file system says against it is the user's to put right."""
    try:
        with fsspec.open(url, "rb") as file:
            yield file
    except FileNotFoundError as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise UserError(f"{url}: no such file{cause}") from error
    except Exception as error:  # each remote file system has exceptions of its own
        raise UserError(f"{url}: cannot be read: {type(error).__name__}: {error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone; the system lets go of it when the process ends, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
