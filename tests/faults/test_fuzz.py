"""The short form of `fuzz.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_readers_refuse_what_is_broken_and_nothing_worse() -> None:
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(script), "--inputs", "3000"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = re.findall(r"^(.+): (\d+) inputs, (\d+) refused", done.stdout, re.MULTILINE)
    assert len(told) == 6 and all(int(count) == 500 > int(refused) > 100 for _, count, refused in told), done.stdout
