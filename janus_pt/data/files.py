"""Files of a corpus wherever they lie: a local path, or any URL fsspec understands (kept in a local cache)."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from janus_pt.utils.errors import UserError, warn
from janus_pt.utils.files import exclusive_folder, open_atomically

CHUNK = 1 << 20
DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt at a remote file that could not be read."""
STALL_SECONDS = 60.0
"""An HTTP server that sends nothing for so long has failed; how long a whole file takes does not matter."""

Result = TypeVar("Result")


class Damaged(UserError):
    """A file or sample is missing, cut short or not what it was; to read it again is of no use.

    What may pass (a server that does not answer, a disk that gives an error) is a plain `UserError`.
    """


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
    return _attempted(url, lambda: _read(url, limit))


def _read(url: str, limit: int) -> bytes:
    with fsspec.open(url, "rb", **_options(url)) as file:
        size = getattr(file, "size", None) or 0
        content: bytes = file.read((size or limit) + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise UserError(f"{url}: larger than {limit} bytes; this is not the file it should be")
    if len(content) < size:
        raise OSError(f"{len(content)} bytes came, of {size}")
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
        Damaged: a remote file is missing or has another hash, however often it is fetched.
        UserError: it cannot be read.
    """
    path = local_path(url)
    if path is not None:
        return path
    folder = Path(cache_dir or "~/.cache/janus_pt").expanduser() / sha256[:2]
    copy = folder / f"{sha256}{PurePosixPath(url).suffix}"
    if not copy.exists():
        with exclusive_folder(folder):
            # Another process may have fetched it while this one waited.
            if not copy.exists():
                _attempted(url, lambda: _download(url, sha256, copy))
    return copy


def _download(url: str, sha256: str, copy: Path) -> None:
    digest = hashlib.sha256()
    with (
        open_atomically(copy, writer=uuid.uuid4().hex) as target,
        fsspec.open(url, "rb", **_options(url)) as file,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            target.write(chunk)
        if digest.hexdigest() != sha256:
            raise Damaged(
                f"{url}: its sha256 is {digest.hexdigest()}, the corpus was built with {sha256}; "
                "the file is damaged or has been replaced"
            )


def _attempted(url: str, action: Callable[[], Result]) -> Result:
    """Do `action`, again and again with longer and longer waits while a remote file system fails.

    Raises:
        Damaged: there is no such file, or what comes is never the right content.
        UserError: whatever else the file system says is the user's to put right.
    """
    delays = iter(DELAYS if local_path(url) is None else ())
    while True:
        try:
            return action()
        except Exception as error:  # each remote file system has exceptions of its own
            failure = _as_user_error(url, error)
            delay = next(delays, None) if _may_pass(error) else None
            if delay is None:
                raise failure from error
            warn(f"{failure}; trying again in {delay:g} s", local=True)
            time.sleep(delay)


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: not where nothing is, nor where the URL or the installation is wrong."""
    if isinstance(error, Damaged):
        return True
    return not (_is_absence(error) or isinstance(error, ValueError | ImportError))


def _is_absence(error: Exception) -> bool:
    """Whether the store says that there is no such file; fsspec says the same of an HTTP server that fails."""
    cause = error.__cause__
    gone = isinstance(cause, FileNotFoundError | None) or getattr(cause, "status", None) in (
        404,
        410,
    )
    return isinstance(error, FileNotFoundError) and gone


def _as_user_error(url: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if _is_absence(error):
        return Damaged(f"{url}: no such file")
    told = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    return UserError(f"{url}: cannot be read: {type(told).__name__}: {told}")


def _options(url: str) -> dict[str, Any]:
    """Arguments of the file system: over HTTP a file may take long, but not without a byte."""
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}
