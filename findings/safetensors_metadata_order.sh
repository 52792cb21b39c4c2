#!/usr/bin/env bash
# safetensors writes metadata of several keys in another order in each process: the same tensors give files
# with other hashes. With one key the files are equal.
. "$(dirname "$0")/common.sh"
finding safetensors==0.8.0 numpy==2.4.6 <<'PYTHON'
import subprocess
import sys

PROGRAM = """
import hashlib, sys
import numpy
from safetensors.numpy import save
metadata = {key: "1" for key in sys.argv[1]}
print(hashlib.sha256(save({"weight": numpy.ones(2)}, metadata)).hexdigest()[:12])
"""


def hashes(keys):
    command = [sys.executable, "-c", PROGRAM, keys]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(6)]
    return {run.stdout.strip() for run in runs}


several, one = hashes("abcdef"), hashes("a")
print("six keys, six processes:", *sorted(several))
print("one key, six processes: ", *one)
assert len(several) > 1
assert len(one) == 1
PYTHON
