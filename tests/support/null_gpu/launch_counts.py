"""Operations of a training step by part: what `janus_pt/planning/launches.py` has as numbers.

    python -m tests.support.null_gpu.launch_counts

prints, for each way to train, operations of an encoder layer, of a decoder layer, and of all else in a
micro-batch, then the same once a step. Steps of models with one layer or micro-batch more are counted
for it; an operation more or less is theirs, since widths change none.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.null_gpu.processes import call

COSTS = "tests.support.null_gpu.cases:costs"
LAYERS = ((1, 2), (2, 2), (1, 3))
MICRO_BATCHES = (2, 3)
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    # name: (ranks of the job, what differs)
    "ZeRO-1": (2, {"ranks": 2}),
    "ZeRO-2": (2, {"ranks": 2, "parallel": {"zero_stage": 2}}),
    "ZeRO-3": (2, {"ranks": 2, "parallel": {"zero_stage": 3}}),
    "recomputing": (2, {"ranks": 2, "parallel": {"activation_checkpointing": "all"}}),
    "graphs": (2, {"ranks": 2, "run": {"cuda_graphs": True}}),
    "tensor": (2, {"parallel": {"tensor_parallel_size": 2}}),
}


def count(way: str) -> dict[str, int]:
    """Operations of a micro-batch and of a step: for each layer, and for all else."""
    ranks, changes = WAYS[way]
    cases = {
        f"{encoder} {decoder} {micro_batches}": {
            **changes,
            "model": {"encoder_layers": encoder, "decoder_layers": decoder},
            "micro_batches": micro_batches,
        }
        for encoder, decoder in LAYERS
        for micro_batches in MICRO_BATCHES
    }
    found = call(COSTS, cases, rank=0, ranks=ranks)
    return _by_part({name: _operations(cost) for name, cost in found.items()})


def _operations(cost: dict[str, Any]) -> int:
    """With NCCL's, which the host launches as well."""
    return int(cost["operations"]) + int(cost["counts"].get("nccl_calls", 0))


def _by_part(counted: dict[str, int]) -> dict[str, int]:
    """Solve for the parts; `counted` by `ENCODER DECODER MICRO_BATCHES`."""
    few, many = MICRO_BATCHES
    micro_batch, step = {}, {}
    for encoder, decoder in LAYERS:
        shorter, longer = (counted[f"{encoder} {decoder} {count}"] for count in MICRO_BATCHES)
        micro_batch[encoder, decoder] = (longer - shorter) // (many - few)
        step[encoder, decoder] = shorter - few * micro_batch[encoder, decoder]
    parts = {}
    for name, of in (("micro-batch", micro_batch), ("step", step)):
        base, more_encoder, more_decoder = (of[layers] for layers in LAYERS)
        parts[f"{name}: encoder layer"] = more_encoder - base
        parts[f"{name}: decoder layer"] = more_decoder - base
        encoder, decoder = LAYERS[0]
        rest = base - encoder * (more_encoder - base) - decoder * (more_decoder - base)
        parts[f"{name}: all else"] = rest
    return parts


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:] or WAYS:
        print(name, json.dumps(count(name)), flush=True)
