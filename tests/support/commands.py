"""Programs run in forks of the process of `run_ranks`, which has imported everything: that is paid once.

Each has a process of its own with its own arguments, streams, folder, environment and exit code, as from a shell.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from janus_pt.utils.processes import end_with_parent
from tests.support.ranks import run_ranks

POLL_S = 0.02
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that a launcher sets."""


@dataclass(frozen=True)
class Program:
    """What a process runs, and where."""

    words: list[str]
    folder: Path
    environment: dict[str, str]
    stdin: str
    streams: Path
    """Folder of its files `stdout` and `stderr`, with the rank behind them."""


def run_program(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    timeout: float,
    stdin: Path | None = None,
    ranks: int = 1,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its code is that of the first rank that failed.

    Args:
        words: `janus-pt ...`, `python SCRIPT ...` or `python -c TEXT`.
        folder: where it runs.
        environment: all of its variables.
        stdin: what it reads; nothing if None.
        ranks: so many processes run it, as a launcher starts them.

    Raises:
        subprocess.TimeoutExpired: it did not end in time; it was killed.
    """
    with tempfile.TemporaryDirectory() as streams:
        place = Path(streams)
        program = Program(list(words), folder, dict(environment), str(stdin or os.devnull), place)
        codes = run_ranks(_start, ranks, program, timeout, ranks > 1)
        stdout, stderr = (
            "".join((place / f"{name}{rank}").read_text() for rank in range(ranks))
            for name in ("stdout", "stderr")
        )
    if None in codes:
        raise subprocess.TimeoutExpired(shlex.join(words), timeout, stdout, stderr)
    code = next((code for code in codes if code), 0)
    return subprocess.CompletedProcess(program.words, code, stdout, stderr)


def _start(program: Program, timeout: float, is_rank: bool) -> int | None:
    """Its exit code, negative for a signal; None if it was killed because it took too long."""
    rank = os.environ["RANK"]
    if is_rank:
        program.environment.update({name: os.environ[name] for name in OF_A_RANK})
    child = os.fork()
    if child == 0:
        _become(program, rank)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _become(program: Program, rank: str) -> NoReturn:
    """Run it in this process, and end."""
    code = 1
    try:
        end_with_parent()
        _open_streams(program, rank)
        os.chdir(program.folder)
        os.environ.clear()
        os.environ.update(program.environment)
        _run(program.words)
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        # Not `sys.exit`: this fork shares what the first process would clean up.
        os._exit(code)


def _open_streams(program: Program, rank: str) -> None:
    new = os.O_WRONLY | os.O_CREAT
    os.dup2(os.open(program.stdin, os.O_RDONLY), 0)
    os.dup2(os.open(program.streams / f"stdout{rank}", new), 1)
    os.dup2(os.open(program.streams / f"stderr{rank}", new), 2)
    # The first process has read none of its input, which is another.
    sys.stdin = os.fdopen(0, closefd=False)


def _run(words: list[str]) -> None:
    if words[0] == "janus-pt":
        from janus_pt.commands.main import main

        sys.argv = words
        main()
    elif words[1] == "-c":
        sys.argv = ["-c"]
        sys.path.insert(0, "")
        exec(compile(words[2], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words[1:]
        sys.path.insert(0, str(Path(words[1]).parent))
        runpy.run_path(words[1], run_name="__main__")
