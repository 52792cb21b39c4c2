"""A job for DeepSpeed without a launcher, for the scripts beside this file."""

from __future__ import annotations

import contextlib
import os
import sys

import deepspeed
import torch.distributed as dist

CONFIG = {"train_micro_batch_size_per_gpu": 1, "steps_per_print": 1000}


def start(rank: int = 0, size: int = 1) -> None:
    """Make this process one of a job's ranks, all of which run in one folder."""
    # Without it a kernel for collectives on the CPU would be compiled first.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("ERROR")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    store = dist.FileStore("store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    deepspeed.init_distributed("gloo")


def quiet() -> contextlib.AbstractContextManager:
    """DeepSpeed's own notes go to standard error."""
    return contextlib.redirect_stdout(sys.stderr)
