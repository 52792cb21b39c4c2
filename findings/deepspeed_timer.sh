#!/usr/bin/env bash
# DeepSpeed's throughput timer is on without being asked for, and makes the host wait for the device twice a
# micro-batch from the third on, however seldom it reports.
. "$(dirname "$0")/common.sh"
finding deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

import tiny_deepspeed

tiny_deepspeed.start()
waits = []
get_accelerator().synchronize = lambda *device: waits.append(device)


def count(**more):
    """Of waits in each of eight micro-batches."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    config = {**tiny_deepspeed.CONFIG, **more}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    found = []
    for _ in range(8):
        waits.clear()
        engine.backward(engine(torch.ones(1, 4)).sum())
        engine.step()
        found.append(len(waits))
    return found


default, off = count(), count(timers={"throughput": {"enabled": False}})
print("waits in each micro-batch:  ", default)
print("with timers.throughput off: ", off)
assert default[-4:] == [2] * 4
assert not any(off)
PYTHON
