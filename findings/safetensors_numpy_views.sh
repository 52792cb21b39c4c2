#!/usr/bin/env bash
# safetensors.numpy writes the memory of a transposed or sliced array in its own order under the view's shape:
# the file loads, with other values. safetensors.torch refuses such tensors.
. "$(dirname "$0")/common.sh"
finding safetensors==0.8.0 numpy==2.4.6 torch==2.13.0 <<'PYTHON'
import numpy as np
import safetensors.torch
import torch
from safetensors.numpy import load, save

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def survives(array):
    return np.array_equal(load(save({"weight": array}))["weight"], array)


views = {"as it is": WEIGHT, "transposed": WEIGHT.T, "every second column": WEIGHT[:, ::2]}
found = {name: survives(view) for name, view in views.items()}
for name, same in found.items():
    print(f"{name}: the same after saving and loading: {same}")
message = ""
try:
    safetensors.torch.save({"weight": torch.from_numpy(WEIGHT).T})
except ValueError as error:
    message = str(error)
print("torch, transposed:", message.partition(".")[0])
assert list(found.values()) == [True, False, False]
assert "contiguous" in message
PYTHON
