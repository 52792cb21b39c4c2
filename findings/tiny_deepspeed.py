"""A job of one rank for DeepSpeed, without a launcher, for the scripts beside this file."""

from __future__ import annotations

import contextlib
import os
import sys

import deepspeed
import torch.distributed as dist

CONFIG = {"train_micro_batch_size_per_gpu": 1, "steps_per_print": 1000}


def start() -> None:
    """Make this process rank 0 of 1."""
    # Without it a kernel for collectives on the CPU would be compiled first.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed("gloo")


def quiet() -> contextlib.AbstractContextManager:
    """DeepSpeed's own notes go to standard error."""
    return contextlib.redirect_stdout(sys.stderr)
