#!/usr/bin/env bash
# torch.manual_seed takes a hundred times as long as to seed the CPU's generator, on machines with no other
# device: it seeds every kind of accelerator, and those that are not there note a stack trace for later.
. "$(dirname "$0")/common.sh"
finding torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import timeit

import torch

default = torch.default_generator


def microseconds(call):
    return min(timeit.repeat(call, number=100, repeat=5)) * 1e4


whole = microseconds(lambda: torch.manual_seed(5))
alone = microseconds(lambda: default.manual_seed(5))
torch.manual_seed(7)
state = torch.get_rng_state()
default.manual_seed(7)
same = torch.equal(state, torch.get_rng_state())
print(f"torch.manual_seed {whole:.0f} us, default_generator.manual_seed {alone:.1f} us")
print("the same state of the CPU's generator:", same)
assert same
assert whole > 20 * alone
PYTHON
