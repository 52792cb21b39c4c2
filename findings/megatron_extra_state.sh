#!/usr/bin/env bash
# megatron-core's layers put an entry _extra_state: None into their state dicts, for a library that is not
# there. DeepSpeed's universal converter takes it for a parameter and fails.
. "$(dirname "$0")/common.sh"
finding megatron-core==0.16.1 deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import subprocess
import sys

import deepspeed
import torch
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel import ColumnParallelLinear

import tiny_deepspeed

tiny_deepspeed.start()
parallel_state.initialize_model_parallel(1)
SETTINGS = ModelParallelConfig(use_cpu_initialization=True, params_dtype=torch.float32)
CONFIG = {**tiny_deepspeed.CONFIG, "zero_optimization": {"stage": 1}}
INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}


class Model(torch.nn.Module):
    """One sharded layer."""

    def __init__(self):
        super().__init__()
        self.layer = ColumnParallelLinear(4, 4, config=SETTINGS, init_method=torch.nn.init.ones_)

    def forward(self, states):
        return self.layer(states)[0]


def convert(model, name):
    """The converter's exit code and last line."""
    optimizer = torch.optim.AdamW(model.parameters())
    with tiny_deepspeed.quiet():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
        engine.backward(engine(torch.ones(1, 4)).sum())
        engine.step()
        engine.save_checkpoint(name, tag="saved", client_state=INFO)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    folders = ["--input_folder", f"{name}/saved", "--output_folder", f"{name}/universal"]
    workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    done = subprocess.run([*command, *folders, *workers], capture_output=True, text=True)
    return done.returncode, done.stderr.strip().splitlines()[-1]


state = Model().state_dict()
sharded, plain = convert(Model(), "sharded"), convert(torch.nn.Linear(4, 4), "plain")
print({name: type(value).__name__ for name, value in state.items()})
print("converter, megatron-core's layer:", *sharded)
print("converter, torch's layer:        ", plain[0])
assert state["layer._extra_state"] is None
assert sharded[0] != 0 and "NoneType" in sharded[1]
assert plain[0] == 0
PYTHON
