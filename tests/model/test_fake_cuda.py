"""A training step on a GPU's terms: no operator mixes devices, nothing makes the host wait."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.support.fake_cuda.build import compile_device
from tests.support.fake_cuda.cases import CASES

pytestmark = [
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="compiles a device for torch: needs g++"
    ),
    pytest.mark.skipif(
        torch.version.cuda is not None, reason="takes the place of CUDA, which this torch has"
    ),
]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each case. In one process of its own, before which torch has not started."""
    library = compile_device(tmp_path_factory.mktemp("fake_cuda"))
    command = [sys.executable, "-m", "tests.support.fake_cuda.step", str(library)]
    done = subprocess.run(
        command, env={**os.environ, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_step_neither_mixes_devices_nor_waits(problems: dict[str, str], case: str) -> None:
    assert problems[case] == ""


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("a value is read", "DataDependentOutputException"),
        ("a shape is made of data", "DynamicOutputShapeException"),
        ("devices are mixed", "FakeTensorDeviceMismatchError"),
    ],
)
def test_faults_are_seen(problems: dict[str, str], fault: str, raised: str) -> None:
    assert problems[fault].startswith(raised)
