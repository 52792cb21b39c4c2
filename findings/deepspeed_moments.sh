#!/usr/bin/env bash
# DeepSpeed links parameters with AdamW's moments once, at the first step. A checkpoint that is loaded later
# breaks the link for good: safe_get_full_optimizer_state raises, before and after the next step.
. "$(dirname "$0")/common.sh"
finding deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import deepspeed
import torch
from deepspeed.utils import safe_get_full_optimizer_state

import tiny_deepspeed

tiny_deepspeed.start()
CONFIG = {
    **tiny_deepspeed.CONFIG,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1},
}
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters())
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)


def step():
    engine.backward(engine(torch.ones(1, 4, dtype=torch.bfloat16)).sum())
    engine.step()


def moment():
    try:
        return safe_get_full_optimizer_state(engine.module.weight, "exp_avg").sum().item()
    except TypeError as error:
        return str(error)


with tiny_deepspeed.quiet():
    step()
    engine.save_checkpoint("checkpoint", tag="first")
    before = moment()
    engine.load_checkpoint("checkpoint", tag="first")
    loaded = moment()
    step()
    after = moment()
(state, *_) = engine.optimizer.optimizer.state.values()
print("before loading:     ", before)
print("after loading:      ", loaded)
print("after the next step:", after)
print("the optimizer's own:", state["exp_avg"].sum().item())
assert isinstance(before, float)
assert isinstance(loaded, str) and isinstance(after, str)
PYTHON
