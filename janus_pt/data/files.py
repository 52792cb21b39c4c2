"""Files of a corpus wherever they lie: a local path, or any URL fsspec understands (kept in a local cache)."""

from __future__ import annotations

import hashlib
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
GONE = (404, 410)
"""HTTP statuses of a file that is not there."""

Result = TypeVar("Result")


class Damaged(UserError):
    """A file or sample is missing, cut short or has other content; reading it again does not help.

    A failure that may pass (a server that does not answer, a disk that gives an error) is a plain `UserError`.
    """


def join(folder: str, name: str) -> str:
    """Path or URL of a file in a folder given as path or URL."""
    return f"{folder.rstrip('/')}/{name}"


def local_path(url: str) -> Path | None:
    """The path a URL names on this machine (`file://` or no scheme at all); None for anything remote."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    if "://" in url:
        return None
    return Path(url).expanduser()


def read_bytes(url: str, limit: int) -> bytes:
    """A small file's content.

    Raises:
        UserError: it cannot be read, or has more than `limit` bytes.
    """
    return with_retries(url, lambda: _read(url, limit))


def _read(url: str, limit: int) -> bytes:
    with fsspec.open(url, "rb", **_options(url)) as file:
        # Not every file system knows the size in advance; then one byte more than allowed is asked for.
        size = getattr(file, "size", None) or 0
        content: bytes = b""
        if size <= limit:
            content = file.read((size or limit) + 1)
    if max(size, len(content)) > limit:
        raise UserError(f"{url}: larger than {limit} bytes; this is not the file it should be")
    # A server may close the connection early without an error.
    if len(content) < size:
        raise OSError(f"{len(content)} bytes came, of {size}")
    return content


def local_copy(url: str, sha256: str, cache_dir: str | Path | None = None) -> Path:
    """A path at which the file can be opened: its own if it is local, else the path of a copy in the cache.

    A remote file is downloaded once, whatever the number of processes that ask for it. It enters the cache only if
    its hash is `sha256`: every file in the cache is whole. Local files are not hashed.

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
    cache = Path(cache_dir or "~/.cache/janus_pt").expanduser()
    # 256 folders with a lock each, so that processes that fetch different files seldom wait for each other.
    folder = cache / sha256[:2]
    copy = folder / f"{sha256}{PurePosixPath(url).suffix}"
    if copy.exists():
        return copy
    with exclusive_folder(folder):
        # Another process may have fetched it while this one waited.
        if not copy.exists():
            with_retries(url, lambda: _download(url, sha256, copy))
    return copy


def fetch(url: str, folder: Path) -> Path:
    """A path at which a file of unknown content can be opened: its own, or a new copy in `folder`, with its suffixes.

    Raises:
        UserError: it cannot be read, or fewer bytes came than the store says it has, however often it is tried.
    """
    path = local_path(url)
    if path is not None:
        return path
    copy = folder / PurePosixPath(url.partition("?")[0]).name
    with_retries(url, lambda: _fetch(url, copy))
    return copy


def _fetch(url: str, copy: Path) -> None:
    with open(copy, "wb") as target, fsspec.open(url, "rb", **_options(url)) as source:
        while chunk := source.read(CHUNK):
            target.write(chunk)
        size = getattr(source, "size", None) or 0
        if target.tell() < size:
            raise OSError(f"{target.tell()} bytes came, of {size}")


def _download(url: str, sha256: str, copy: Path) -> None:
    """Fetch a file; it gets the name `copy` when all of it is on disk and has the right hash."""
    digest = hashlib.sha256()
    # A writer's name of its own: a partial file that a killed process left must not be continued.
    writer = uuid.uuid4().hex
    with (
        open_atomically(copy, writer) as target,
        fsspec.open(url, "rb", **_options(url)) as source,
    ):
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            target.write(chunk)
        # Raised inside the block, so that the file does not get its name.
        if digest.hexdigest() != sha256:
            raise Damaged(
                f"{url}: its sha256 is {digest.hexdigest()}, the corpus was built with {sha256}; "
                "the file is damaged or has been replaced"
            )


def with_retries(url: str, action: Callable[[], Result]) -> Result:
    """The result of `action`, repeated with longer and longer waits while a remote file system fails.

    Raises:
        Damaged: there is no such file, or its content is never the right one.
        UserError: any other error of the file system; its text says what the user can repair.
    """
    # A local disk that fails does not recover within seconds.
    delays = iter(DELAYS if local_path(url) is None else ())
    while True:
        try:
            return action()
        # Each remote file system has exceptions of its own, with no common base.
        except Exception as error:
            failure = _as_user_error(url, error)
            delay = next(delays, None) if _may_pass(error) else None
            if delay is None:
                raise failure from error
            warn(f"{failure}; trying again in {delay:g} s", local=True)
            time.sleep(delay)


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may help. It does not for a missing file, a wrong URL or a missing package."""
    # Checked first, since it is a ValueError: a wrong hash may come from a transfer that went wrong.
    if isinstance(error, Damaged):
        return True
    return not (_is_absence(error) or isinstance(error, ValueError | ImportError))


def _is_absence(error: Exception) -> bool:
    """Whether the store reports that there is no such file."""
    if not isinstance(error, FileNotFoundError):
        return False
    # fsspec raises FileNotFoundError for every failure of an HTTP server; the cause tells them apart.
    cause = error.__cause__
    return isinstance(cause, FileNotFoundError | None) or getattr(cause, "status", None) in GONE


def _as_user_error(url: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if _is_absence(error):
        return Damaged(f"{url}: no such file")
    reason: BaseException = error
    if isinstance(error, FileNotFoundError) and error.__cause__:
        reason = error.__cause__
    return UserError(f"{url}: cannot be read: {type(reason).__name__}: {reason}")


def _options(url: str) -> dict[str, Any]:
    """Arguments of the file system: over HTTP a file may take long, but not without a byte."""
    if not url.startswith(("http://", "https://")):
        return {}
    # Imported here: only HTTP needs it, and it takes a second.
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}
