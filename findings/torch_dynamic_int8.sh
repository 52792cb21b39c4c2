#!/usr/bin/env bash
# A dynamically quantised linear layer gives a row another output when another row of its input is large: the scale of
# the inputs is the whole batch's. Beside a row a hundred times as large nothing of an output is left.
. "$(dirname "$0")/common.sh"
finding torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
from torch import nn

torch.manual_seed(1)
linear = nn.Linear(64, 64)
quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear})
row, large = torch.randn(1, 64), 100 * torch.randn(1, 64)
exact = linear(row).norm()
alone = (quantised(row) - linear(row)).norm() / exact
beside = (quantised(torch.cat((row, large)))[:1] - linear(row)).norm() / exact
print(f"error of a row's output: {alone:.1%} alone, {beside:.0%} beside a row a hundred times as large")
assert alone < 0.05
assert beside > 0.3
PYTHON
