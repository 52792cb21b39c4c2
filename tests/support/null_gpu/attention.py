"""FlexAttention under the project's masks: machine code for sm_90, and how often it is compiled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton.backends.nvidia
from torch._dynamo.utils import counters as dynamo_counters
from torch.nn.attention import flex_attention

from janus_pt.model.block_masks import cross_block_mask, slots_block_mask
from janus_pt.model.flex import attend_blocks
from janus_pt.train.step import evaluate, train_step
from tests.support.null_gpu import training
from tests.support.null_gpu.cases import LENGTH, build_config

TOOL = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
HEADS = 2


def stack_bytes(head_size: int, dtype: str = "bfloat16") -> dict[str, int]:
    """Bytes of stack a thread of each kernel, forward and backward, of two masks: spilled registers.

    The process must have compiled nothing before; `TRITON_CACHE_DIR` is empty.
    """
    training.groups.initialize()
    config = build_config(model={"hidden_size": HEADS * head_size})
    batch = training.make_batch(config, 1, LENGTH, LENGTH // 2).to(torch.device("cuda"))
    masks = {
        "slots": slots_block_mask(batch.slots, 0),
        "sources": cross_block_mask(batch.slots, batch.source, 0),
    }
    found = {}
    seen: set[Path] = set()
    for name, mask in masks.items():
        queries, keys = mask.seq_lengths
        kind: dict[str, Any] = {
            "device": "cuda",
            "dtype": getattr(torch, dtype),
            "requires_grad": True,
        }
        q = torch.zeros(1, HEADS, queries, head_size, **kind)
        k, v = (torch.zeros(1, HEADS, keys, head_size, **kind) for _ in range(2))
        attend_blocks(q, k, v, mask).sum().backward()
        compiled = set(Path(os.environ["TRITON_CACHE_DIR"]).rglob("triton_tem*flex*.cubin"))
        for cubin in compiled - seen:
            direction = "backward" if "backward" in cubin.name else "forward"
            found[f"{name}, {direction}"] = _stack(cubin)
        seen |= compiled
    return found


def _stack(cubin: Path) -> int:
    command = [str(TOOL), "--dump-resource-usage", str(cubin)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    assert found is not None, listing
    print(cubin.name, found[0], file=sys.stderr, flush=True)
    return int(found[2])


def life(case: dict[str, Any]) -> dict[str, Any]:
    """A run's calls of FlexAttention in short: the dry step, validation, steps of many sizes, again.

    Returns how many graphs were compiled, and how often it ran without a compiler.
    """
    eager = 0
    warn_once = flex_attention._warn_once

    def count_eager(*arguments: Any, **options: Any) -> None:
        nonlocal eager
        eager += 1
        warn_once(*arguments, **options)

    flex_attention._warn_once = count_eager
    config = build_config(**case, micro_batches=1)
    engine = training.start(config)

    def batch(seed: int, samples: int, shortest: int, longest: int) -> Any:
        data = config.data.model_copy(update={"micro_batch_size": samples})
        smaller = config.model_copy(update={"data": data})
        return training.make_batch(smaller, seed, longest, shortest)

    def graphs() -> int:
        return int(dynamo_counters["stats"]["unique_graphs"])

    train_step(engine, [batch(0, 16, LENGTH, LENGTH)], 1, 1)
    after = {"dry step": graphs()}
    evaluate(engine, [batch(1, 16, 30, LENGTH), batch(2, 3, 10, 20), batch(3, 1, 10, 12)])
    after["validation"] = graphs()
    for step in range(2, 8):
        train_step(engine, [batch(10 + step, 2 * step, 20, LENGTH)], step, 1)
    train_step(engine, [batch(50, 1, 10, 12)], 8, 1)
    after["steps"] = graphs()
    # A resumed run has the same code, and batches without blocks where it makes its dry step.
    evaluate(engine, [batch(60, 16, 30, LENGTH)])
    train_step(engine, [batch(61, 16, LENGTH, LENGTH)], 9, 1)
    after["resumed"] = graphs()
    print(case, after, eager, flush=True)
    return {"graphs": after, "eager calls": eager}


def lives(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`life` of each case, each from nothing."""
    found = {}
    for name, case in cases.items():
        torch._dynamo.reset()
        dynamo_counters.clear()
        found[name] = life(case)
    return found


if __name__ == "__main__":
    print(json.dumps(stack_bytes(int(sys.argv[1]))), flush=True)
    os._exit(0)
