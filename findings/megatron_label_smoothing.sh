#!/usr/bin/env bash
# megatron-core's vocab_parallel_cross_entropy smooths labels over each rank's part of the vocabulary alone:
# with tensor parallelism the loss is another one, and ranks of one group have different losses.
. "$(dirname "$0")/common.sh"
finding megatron-core==0.16.1 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

LOGITS = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([[1], [4], [6]])


def losses(rank, size):
    """Write the losses without and with smoothing; the vocabulary is divided among `size` ranks."""
    torch.cuda.current_device = lambda: "cpu"
    store = dist.FileStore(f"store{size}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    parallel_state.initialize_model_parallel(size)
    part = LOGITS.chunk(size, dim=-1)[rank]
    found = [vocab_parallel_cross_entropy(part.clone(), TARGET, smooth) for smooth in (0.0, 0.1)]
    torch.save(found, f"losses{size}-{rank}")
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


if __name__ == "__main__":
    losses(0, 1)
    mp.spawn(losses, (2,), nprocs=2)
    whole, first, second = (torch.load(f"losses{name}") for name in ("1-0", "2-0", "2-1"))
    for name, found in (("1 rank", whole), ("rank 0 of 2", first), ("rank 1 of 2", second)):
        plain, smooth = (loss.flatten().tolist() for loss in found)
        print(f"{name:12} plain {plain[0]:.4f}, smoothed {smooth[0]:.4f} {smooth[1]:.4f}")
    assert torch.allclose(whole[0], first[0]) and torch.allclose(whole[0], second[0])
    assert (whole[1] - first[1]).abs().max() > 0.01
    assert (first[1] - second[1]).abs().max() > 0.01
PYTHON
