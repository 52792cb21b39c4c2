#!/usr/bin/env bash
# torch.load(weights_only=True) says in many ways that a file was cut short: for the format before torch 1.6
# there are five types of errors, one of them struct.error, and no common base but Exception.
. "$(dirname "$0")/common.sh"
finding torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import io
from collections import Counter

import torch

WEIGHTS = {"a": torch.arange(10), "b": torch.ones(3, 3), "step": 7}


def errors(zipped):
    """Of loading every beginning of a file."""
    file = io.BytesIO()
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=zipped)
    whole, kinds = file.getvalue(), Counter()
    for size in range(len(whole)):
        try:
            torch.load(io.BytesIO(whole[:size]), weights_only=True)
        except Exception as error:
            kinds[f"{type(error).__module__}.{type(error).__name__}"] += 1
    print("archive:" if zipped else "older format:", dict(kinds))
    return kinds


assert len(errors(True)) == 3
assert len(errors(False)) == 5
PYTHON
