"""Where the host waits for the device: file and line of each wait."""

from __future__ import annotations

import ctypes
import linecache
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.support.null_gpu.counters import LIBRARY

ROOT = Path(__file__).parents[3]
OWN = f"{ROOT}{os.sep}"
Callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
SKIPPED = (f"{os.sep}torch{os.sep}", str(Path(__file__)), "contextlib.py", "functools.py")
"""Files whose frames say nothing about who waits."""


@contextmanager
def watch_waits() -> Iterator[Counter[str]]:
    """Count the waits inside, by kind and place.

    The stand-in calls back whenever the host waits for a stream, an event or the device, or copies
    from or to memory that is not pinned, which waits as well.
    """
    waits: Counter[str] = Counter()

    def note(kind: bytes) -> None:
        waits[f"{kind.decode()}: {_place(sys._getframe(1))}"] += 1

    callback = Callback(note)
    LIBRARY.null_gpu_on_wait(callback)
    try:
        yield waits
    finally:
        LIBRARY.null_gpu_on_wait(None)


def _place(frame: FrameType | None) -> str:
    """The innermost frame outside torch, and the innermost of this project if it is another."""
    frames = []
    while frame is not None:
        if not any(part in frame.f_code.co_filename for part in SKIPPED):
            frames.append(frame)
        frame = frame.f_back
    if not frames:
        # autograd's threads run torch's own functions without Python.
        return "in a thread of torch"
    innermost = frames[0]
    line = linecache.getline(innermost.f_code.co_filename, innermost.f_lineno).strip()
    place = f"{_name(innermost)} ({line[:90]})"
    ours = [f for f in frames if f.f_code.co_filename.startswith(OWN)]
    if ours and ours[0] is not innermost:
        place += f" <- {_name(ours[0])}"
    return place


def _name(frame: FrameType) -> str:
    path = frame.f_code.co_filename.rpartition(f"site-packages{os.sep}")[2].removeprefix(OWN)
    return f"{path}:{frame.f_lineno}"
