#!/usr/bin/env bash
# peft keeps the names in target_modules as a set: adapter_config.json lists them in another order in each
# process, and the same adapter's files have other hashes.
. "$(dirname "$0")/common.sh"
finding peft==0.21.2 torch==2.13.0 transformers==5.24.0 <<'PYTHON'
import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
from peft import LoraConfig
LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]).save_pretrained("lora")
"""


def saved(seed):
    """The list in the file; Python draws such a seed for each process unless it is given."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True)
    return json.loads(Path("lora/adapter_config.json").read_text())["target_modules"]


orders = [saved(seed) for seed in (1, 2, 3)]
for order in orders:
    print(*order)
assert len({tuple(order) for order in orders}) > 1
assert len({frozenset(order) for order in orders}) == 1
PYTHON
