"""A training process does not import what DeepSpeed and megatron-core bring along for parts that nobody uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.runs import environment, write_run_config

HEAVY = {"mlflow.tracking", "pandas", "torch._inductor.compile_fx"}
PROGRAM = """
import torch
compile_function = torch.compile
import janus_pt.parallel.light_imports
assert torch.compile is compile_function
import mlflow
"""


def test_the_command_imports_neither_mlflow_nor_inductor(tmp_path: Path) -> None:
    """`--replay` imports what a training does, and ends where its file is missing."""
    start = [sys.executable, "-X", "importtime", "-m", "janus_pt", "pretrain"]
    given = ["--config", str(write_run_config(tmp_path)), "--replay", str(tmp_path / "none")]
    done = subprocess.run([*start, *given], env=environment(), capture_output=True, text=True)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time")}
    assert done.returncode == 2 and {"deepspeed", "janus_pt.train.run"} <= imported
    assert not imported & HEAVY


def test_both_can_still_be_imported() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment(), check=True)
