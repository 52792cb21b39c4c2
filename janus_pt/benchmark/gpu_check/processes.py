"""Running a check's function in processes of its own, one for each rank.

    python -m janus_pt.benchmark.gpu_check.processes MODULE:FUNCTION SETTINGS OUTPUT

is one of them; the first rank writes its result to OUTPUT.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from janus_pt.benchmark.gpu_check.result import FAILED, Result
from janus_pt.parallel.job_store import part

POLL_S = 0.1
LAST_WORDS = 3000
"""Characters of a failed process's output that the result keeps."""
TRACEBACK = "Traceback (most recent call last)"


def run_check(
    function: str, settings: Mapping[str, Any], device: str, ranks: int, timeout_s: float
) -> Result:
    """The result of `MODULE:FUNCTION` of this package, called with the settings on every rank.

    Whatever happens to the processes is the check's result: it raises nothing.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = _start(function, settings, device, ranks, folder)
        codes = _wait(processes, started + timeout_s)
        result = _result(folder, codes, timeout_s)
    result.seconds = time.monotonic() - started
    return result


def _start(
    function: str, settings: Mapping[str, Any], device: str, ranks: int, folder: Path
) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        place = {
            "DS_ACCELERATOR": device,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        module = "janus_pt.benchmark.gpu_check.processes"
        words = [function, json.dumps(settings), str(folder / "result.json")]
        with (folder / f"output.{rank}").open("wb") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *words],
                    env={**os.environ, **place},
                    stdout=output,
                    stderr=output,
                )
            )
    return processes


def _wait(processes: list[subprocess.Popen[bytes]], deadline: float) -> list[int | None]:
    """Exit codes, None for a process that was still running; none is left behind."""
    try:
        while time.monotonic() < deadline:
            codes = [process.poll() for process in processes]
            # The others of a rank that failed may wait for it for ever.
            if all(code is not None for code in codes) or any(codes):
                return codes
            time.sleep(POLL_S)
        return [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _result(folder: Path, codes: list[int | None], timeout_s: float) -> Result:
    failed = [rank for rank, code in enumerate(codes) if code]
    late = [rank for rank, code in enumerate(codes) if code is None]
    if failed or late:
        rank = (failed or late)[0]
        why = f"exit code {codes[rank]}" if failed else f"not done after {timeout_s:g} s"
        output = (folder / f"output.{rank}").read_text(errors="replace").strip()
        return Result(FAILED, f"rank {rank}: {why}: {_last_words(output)}")
    return Result(**json.loads((folder / "result.json").read_text()))


def _last_words(output: str) -> str:
    """The end of the traceback, behind which NCCL may say much while the process ends; without one of the output."""
    frames = output[output.rfind(TRACEBACK) :].partition("\n")[2] if TRACEBACK in output else ""
    # They are indented; the exception is the first line that is not. torch puts the rank before each.
    exception = re.search(r"^(?:\[rank\d+\]: ?)?(?!\[rank)\S.*$", frames, re.MULTILINE)
    words = frames[: exception.end()] if exception else output
    return words[-LAST_WORDS:]


def main() -> None:
    """In a process: call the function; the first rank writes what it returns."""
    name, settings, output = sys.argv[1:]
    module, _, function = name.partition(":")
    package = (
        __name__.rpartition(".")[0] if __name__ != "__main__" else "janus_pt.benchmark.gpu_check"
    )
    called = getattr(importlib.import_module(f"{package}.{module}"), function)
    result: Result = called(**json.loads(settings))
    if os.environ["RANK"] == "0":
        Path(output).write_text(json.dumps(result.as_dict()))
    if dist.is_initialized():
        part()
    sys.stdout.flush()
    # Not the ordinary end, in which a process group may wait for ranks that have ended already.
    os._exit(0)


if __name__ == "__main__":
    main()
