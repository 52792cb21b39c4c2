"""Files and folders that are there whole or not at all; folders held by one process."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from janus_pt.utils.errors import UserError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The disk is full, or a quota or limit is reached."""
GIT_LFS = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for a large one."""


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. `UserError` if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: no folder can be made there: {error.strerror}; give another"
        ) from None


def check_content(path: Path) -> None:
    """`UserError` if a file is the pointer that git leaves without Git LFS, in place of its content."""
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise UserError(f"{path}: a pointer of Git LFS: run `git lfs pull` in its folder")


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_atomically(path: Path, writer: str = "") -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends, and vanishes if it fails.

    A reader sees the old content or the new, never a part. Content and name are on disk afterwards.

    Args:
        writer: tells processes apart that may write the same file at the same time.
    """
    partial = path.with_name(f".{path.name}.partial{writer}")
    try:
        with partial.open("wb") as file:
            yield file
            # Content before name: after a power cut the name must not stand for an empty file.
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    # The new name itself is only on disk once the folder that lists it is.
    sync(path.parent)


def write_bytes_atomically(path: Path, content: bytes, writer: str = "") -> None:
    """Replace a file at once, as `open_atomically` does."""
    with open_atomically(path, writer) as file:
        file.write(content)


def write_atomically(path: Path, text: str) -> None:
    """Replace a UTF-8 text file at once, as `open_atomically` does."""
    write_bytes_atomically(path, text.encode())


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `target` when the block ends.

    If the block fails, the new folder vanishes and `target` stays as it was. All files are on disk
    before the folder gets its name. Not for several processes at once.

    Raises:
        UserError: no folder can be made there, or there is no room for the files.
    """
    # "." has no name to put another beside.
    target = target.absolute() if target.name else target.resolve()
    staging = target.with_name(f".{target.name}.partial")
    # A killed process may have left one behind.
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    try:
        yield staging
        for path in (*staging.rglob("*"), staging):
            sync(path)
        replace_folder(staging, target)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{target}: cannot be written: {error.strerror}; make room, or give another folder"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def staged_new_folder(target: Path) -> Iterator[Path]:
    """`staged_folder` for a folder that is not there yet, or is empty.

    Raises:
        UserError: `target` holds something, or no folder can be made there.
    """
    # Unlike Path.exists, False for a name that is too long: then no folder can be made.
    if os.path.exists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: exists already; choose another folder, or remove it first")
    with staged_folder(target) as folder:
        yield folder


def replace_folder(staging: Path, target: Path) -> None:
    """Rename the folder `staging` to `target`; what was there before is removed.

    If the rename fails, `target` is put back.
    """
    # No system call swaps two folders portably, so the old one is put aside first and removed last.
    old = target.with_name(f".{target.name}.old.partial")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def exclusive_folder(folder: Path, waiting: str = "") -> Iterator[int]:
    """Hold a folder, which is made if need be, for this process alone; yields the lock's file descriptor.

    Waits while another process holds it, and then prints `waiting`, if there is any. The system releases the lock
    when the last process that has the descriptor ends, however it ends; processes that inherit it hold it, too.

    Raises:
        UserError: no folder can be made there.
    """
    make_folder(folder)
    # Opened for writing, since a lock on a file opened for reading alone fails on NFS.
    with (folder / ".lock").open("w") as lock:
        if not lock_descriptor(lock.fileno(), blocking=False):
            if waiting:
                print(waiting, flush=True)
            lock_descriptor(lock.fileno())
        # Closed but not unlocked: to unlock would end the hold of processes that inherited it.
        yield lock.fileno()
