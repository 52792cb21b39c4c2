#!/usr/bin/env bash
# megatron-core's vocab_parallel_cross_entropy writes probabilities over the float32 logits that it is given:
# who reads logits after the loss reads these. bfloat16 logits stay, since they are copied first.
. "$(dirname "$0")/common.sh"
finding megatron-core==0.16.1 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

torch.cuda.current_device = lambda: "cpu"
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel(1)
TARGET = torch.tensor([[1], [4], [6]])


def after(dtype):
    """The logits before and after the loss."""
    logits = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = logits.clone()
    vocab_parallel_cross_entropy(logits, TARGET)
    return before, logits


before, logits = after(torch.float32)
print("float32 before:", before[0, 0, :4].tolist())
print("float32 after: ", logits[0, 0, :4].tolist())
assert torch.allclose(logits, before.softmax(dim=-1))
before, logits = after(torch.bfloat16)
print("bfloat16 unchanged:", torch.equal(before, logits))
assert torch.equal(before, logits)
PYTHON
