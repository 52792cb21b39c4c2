#!/usr/bin/env bash
# DeepSpeed in bfloat16 without ZeRO takes a step of the optimizer in deepspeed.initialize: AdamW's decay
# shrinks the float32 weights before any batch, and its counter begins at 1. With ZeRO-1 it does not.
. "$(dirname "$0")/common.sh"
finding deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import deepspeed
import torch

import tiny_deepspeed

tiny_deepspeed.start()
BFLOAT16 = {**tiny_deepspeed.CONFIG, "bf16": {"enabled": True}}


def begin(stage):
    """A float32 weight of 1 and the optimizer's counters once the engine is there."""
    model = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    config = {**BFLOAT16, "zero_optimization": {"stage": stage}}
    with tiny_deepspeed.quiet():
        deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    weight = optimizer.param_groups[0]["params"][0].flatten()[0].item()
    steps = [state["step"].item() for state in optimizer.state.values()]
    print(f"ZeRO-{stage}: weight 1 became {weight:.3f}, steps {steps}")
    return weight, steps


plain, zero = begin(0), begin(1)
assert abs(plain[0] - 0.95) < 1e-5 and plain[1] == [1.0]
assert zero == (1.0, [])
PYTHON
