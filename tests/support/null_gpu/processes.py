"""Functions that run in a process of their own, under the null GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.null_gpu.environment import ROOT, command, environment, missing

needs_null_gpu = pytest.mark.skipif(bool(missing()), reason=missing())


def call(function: str, *arguments: Any, rank: int = 0, ranks: int = 1, **settings: str) -> Any:
    """The result of `MODULE:FUNCTION`; arguments and result are JSON.

    With `ranks` the process is one rank of as many, without the others (`lone_rank`). `settings` are
    variables of its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        words = [function, json.dumps([rank, ranks, *arguments]), str(output)]
        started = command("-m", "tests.support.null_gpu.processes", *words)
        done = subprocess.run(
            started,
            cwd=ROOT,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert output.exists(), done.stdout.decode(errors="replace")[-4000:]
        return json.loads(output.read_text())


def main() -> None:
    """In the process: call the function, and write down its result."""
    function, words, output = sys.argv[1:]
    rank, ranks, *arguments = json.loads(words)
    if ranks > 1:
        from tests.support.null_gpu import lone_rank

        lone_rank.become(rank, ranks)
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(*arguments)
    Path(output).write_text(json.dumps(result))
    # Without ending the groups: other ranks are not there to take part.
    os._exit(0)


if __name__ == "__main__":
    main()
