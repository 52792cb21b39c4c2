#!/usr/bin/env bash
# megatron-core makes process groups for every kind of parallelism, also those that a run does not use: 710
# for 64 ranks and 11,270 for 1,024 without any but data parallelism. All ranks take part in making each.
. "$(dirname "$0")/common.sh"
finding megatron-core==0.16.1 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

new_group = dist.new_group
made = []


def counted(*args, **kwargs):
    made.append(args)
    return new_group(*args, **kwargs)


def groups(ranks, tensor, pipeline):
    """Divide a job whose other ranks do not exist: torch's backend "fake"."""
    made.clear()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    parallel_state.initialize_model_parallel(tensor, pipeline, create_gloo_process_groups=False)
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    print(f"{ranks:5} ranks, tensor {tensor} x pipeline {pipeline}: {len(made):5} groups")
    return len(made)


dist.new_group = counted
assert groups(64, 1, 1) == 710
assert groups(64, 4, 4) == 305
assert groups(1024, 1, 1) == 11270
PYTHON
