"""The short form of `campaign.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not() -> None:
    call = [sys.executable, str(Path(__file__).with_name("campaign.py")), "--runs", "3", "--seed", "7"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 kills" in done.stdout and "equal bit for bit" in done.stdout and "exactly once" in done.stdout
