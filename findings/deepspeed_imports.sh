#!/usr/bin/env bash
# `import deepspeed` imports MLflow and pandas where MLflow is installed, for an autotuner that nobody asked for;
# `import megatron.core` imports Inductor, for functions that nobody calls. Every rank of a job pays for both.
. "$(dirname "$0")/common.sh"
finding deepspeed==0.19.8 megatron-core==0.16.1 mlflow==3.17.2 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import subprocess
import sys

PROGRAM = """
import sys, time, torch
if {hidden}:
    sys.modules["mlflow"] = None
    torch.compile = lambda function=None, **options: function or torch.compile
before, start = set(sys.modules), time.process_time()
import deepspeed, megatron.core
spent = time.process_time() - start
new = {{name for name in sys.modules if sys.modules[name]}} - before
found = [name for name in ("mlflow", "pandas", "torch._inductor.compile_fx") if name in new]
print(f"{{spent:.2f}} {{len(new)}}", *found)
"""


def start(hidden):
    """Processor seconds, modules, and which of the three are among them."""
    call = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(hidden=hidden)]
    last = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    seconds, modules, *found = last.split()
    return float(seconds), int(modules), found


start(False)  # compiles what pip has left uncompiled
for hidden in (False, True):
    seconds, modules, found = start(hidden)
    print("without them:" if hidden else "as they are: ", f"{seconds} s of processor time,", modules, "modules", found)
    assert found == ([] if hidden else ["mlflow", "pandas", "torch._inductor.compile_fx"])
PYTHON
