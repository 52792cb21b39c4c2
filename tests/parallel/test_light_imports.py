"""A training process does not import what DeepSpeed and megatron-core bring along for parts that nobody uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.runs import environment

PROGRAM = """
import importlib, sys, torch
compile_function = torch.compile
importlib.import_module("{module}")
assert torch.compile is compile_function
heavy = ["mlflow", "pandas", "torch._inductor.compile_fx"]
print([name for name in heavy if name in sys.modules], end=" ")
import mlflow
print(mlflow.__name__, end="")
"""


@pytest.mark.parametrize("module", ["janus_pt.train.run", "janus_pt.checkpoint.universal"])
def test_neither_mlflow_nor_inductor_is_imported_and_both_can_be(module: str) -> None:
    call = [sys.executable, "-c", PROGRAM.format(module=module)]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] mlflow"
