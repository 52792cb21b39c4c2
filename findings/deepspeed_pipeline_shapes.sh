#!/usr/bin/env bash
# DeepSpeed's pipelines with dynamic_shape=True read the announced shape on the host, value by value, for each
# micro-batch: on a GPU each of these reads waits until the stage before has finished.
. "$(dirname "$0")/common.sh"
finding deepspeed==0.19.8 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from deepspeed.pipe import LayerSpec, PipelineModule

import tiny_deepspeed

MICRO_BATCHES = 8
CONFIG = {**tiny_deepspeed.CONFIG, "gradient_accumulation_steps": MICRO_BATCHES}


def stage(rank):
    """Count the host's reads of tensors in a pipeline's second step."""
    tiny_deepspeed.start(rank, 2)
    layers = [LayerSpec(torch.nn.Linear, 4, 4) for _ in range(2)]
    loss = torch.nn.functional.mse_loss
    with tiny_deepspeed.quiet():
        module = PipelineModule(layers, num_stages=2, loss_fn=loss, dynamic_shape=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=CONFIG)
    batches = [(torch.ones(1, 4), torch.ones(1, 4))] * MICRO_BATCHES
    engine.train_batch(iter(batches))
    reads = []
    for name in ("item", "tolist"):
        setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name), reads))
    engine.train_batch(iter(batches))
    Path(f"reads{rank}").write_text(str(len(reads)))
    dist.barrier()
    dist.destroy_process_group()


def counted(read, reads):
    def counting(tensor):
        reads.append(tensor)
        return read(tensor)

    return counting


if __name__ == "__main__":
    mp.spawn(stage, nprocs=2)
    first, second = (int(Path(f"reads{rank}").read_text()) for rank in (0, 1))
    print(f"{MICRO_BATCHES} micro-batches: stage 0 reads {first} times, stage 1 {second} times")
    assert (first, second) == (0, 4 * MICRO_BATCHES)
PYTHON
