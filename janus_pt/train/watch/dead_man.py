"""A timer that ends this process unless it is wound up again, whatever holds Python's interpreter lock.

A thread that waits for a device or a disk inside C code with the lock held stops all Python threads, also
those that would notice. The C library's timers need no Python: one that expires calls `_exit` in a thread
of its own.
"""

from __future__ import annotations

import ctypes
import sys

CLOCK_MONOTONIC, SIGEV_THREAD = 1, 2
"""Of Linux."""


class _SignalEvent(ctypes.Structure):
    """`struct sigevent` of Linux, 64 bytes, with the members that `SIGEV_THREAD` reads."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    )


class _TimerSpec(ctypes.Structure):
    """`struct itimerspec`: the repetition, which is none, and the time until it expires."""

    _fields_ = (
        ("repeat_s", ctypes.c_long),
        ("repeat_ns", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class DeadMansSwitch:
    """Ends the process with `exit_code`, without a word, when `wind_up` was not called for long enough.

    Only on Linux; elsewhere it does nothing.
    """

    def __init__(self, exit_code: int) -> None:
        self._library: ctypes.CDLL | None = None
        if sys.platform != "linux":
            return
        library = ctypes.CDLL(None, use_errno=True)
        leave = ctypes.cast(library._exit, ctypes.c_void_p).value
        # `sival_int` shares its memory with the pointer, and is what `_exit` takes for its argument.
        event = _SignalEvent(value=exit_code, notify=SIGEV_THREAD, function=leave)
        self._timer = ctypes.c_void_p()
        if (
            library.timer_create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer))
            == 0
        ):
            self._library = library

    def wind_up(self, seconds: float) -> None:
        """Expire so many seconds from now; 0: never."""
        if self._library is not None:
            spec = _TimerSpec(seconds=int(seconds), nanoseconds=int(seconds % 1 * 1e9))
            self._library.timer_settime(self._timer, 0, ctypes.byref(spec), None)
