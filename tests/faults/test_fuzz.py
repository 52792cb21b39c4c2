"""The short form of `fuzz.py`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.runs import ROOT


@pytest.mark.slow
def test_readers_refuse_broken_input_and_do_nothing_worse() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", "--inputs", "3500"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = re.findall(r"^(.+): (\d+) inputs, (\d+) refused", done.stdout, re.MULTILINE)
    assert len(reports) == 7 and all(
        int(count) == 500 > int(refused) > 100 for _, count, refused in reports
    ), done.stdout
