#!/usr/bin/env bash
# ZeRO-3 makes a text of every parameter's numbers when it starts, for a message that it does not print. On a GPU
# each of them is copied to the host for that. ZeRO-1 and ZeRO-2 make none.
. "$(dirname "$0")/common.sh"
finding deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import deepspeed
import torch

import tiny_deepspeed

tiny_deepspeed.start()
BFLOAT16 = {**tiny_deepspeed.CONFIG, "bf16": {"enabled": True}}
made = []
as_text = torch.nn.Parameter.__repr__


def counted(parameter):
    made.append(parameter)
    return as_text(parameter)


def texts_of(stage):
    """How many texts of parameters a start makes, of a model that has 16."""
    made.clear()
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(8)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    config = {**BFLOAT16, "zero_optimization": {"stage": stage}}
    with tiny_deepspeed.quiet():
        deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    print(f"ZeRO-{stage}: {len(made)} texts of 16 parameters")
    return len(made)


torch.nn.Parameter.__repr__ = counted
assert [texts_of(stage) for stage in (1, 2)] == [0, 0]
assert texts_of(3) >= 16
PYTHON
