"""Operations of a training step by part: the numbers of `janus_pt/planning/launches.py`.

    python -m tests.support.null_gpu.launch_counts

prints, for each way to train, operations of an encoder layer, of a decoder layer and of all else, in a
micro-batch and once a step. A model with one layer more shows what a layer adds. Widths change nothing.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from typing import Any

from tests.support.null_gpu.processes import call

LAYERS = ((1, 2), (2, 2), (1, 3))
"""Encoder and decoder layers of the models that are compared; the first is the base."""
MICRO_BATCHES = 2
TENSOR = {"tensor_parallel_size": 2}
WAYS: dict[str, dict[str, Any]] = {
    "ZeRO-1": {},
    "ZeRO-2": {"parallel": {"zero_stage": 2}},
    "ZeRO-3": {"parallel": {"zero_stage": 3}},
    "recomputing": {"parallel": {"activation_checkpointing": "all"}},
    "graphs": {"run": {"cuda_graphs": True}},
    "tensor": {"parallel": TENSOR},
    "tensor, sequence": {"parallel": {**TENSOR, "sequence_parallel": True}},
}
"""With two data-parallel ranks each."""


def count(ways: Sequence[str]) -> dict[str, Any]:
    """Parts of each way; those with tensor parallelism have groups of their own, and so a process."""
    found: dict[str, Any] = {}
    for ranks in (2, 4):
        chosen = [name for name in ways if ("tensor" in name) == (ranks == 4)]
        if chosen:
            asked = "tests.support.null_gpu.launch_counts:measure"
            found |= call(asked, chosen, rank=0, ranks=ranks)
    return found


def measure(ways: Sequence[str]) -> dict[str, Any]:
    """In the process: the parts of each way."""
    return {way: _by_part([_operations(way, *layers) for layers in LAYERS]) for way in ways}


def _operations(way: str, encoder_layers: int, decoder_layers: int) -> tuple[int, int]:
    """Operations of a micro-batch that is not the last, and those of a step that no such one has."""
    import torch

    from janus_pt.train.step import train_step
    from tests.support.null_gpu import counters, training
    from tests.support.null_gpu.cases import LENGTH, build_config

    model = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    config = build_config(**WAYS[way], model=model, micro_batches=MICRO_BATCHES, ranks=2)
    engine = training.start(config)
    batches = training.step_batches(config, engine, LENGTH)
    starts: list[int] = []

    def note(*_: Any) -> None:
        starts.append(counters.operations(counters.counts()))

    for step in range(1, training.WARM_UP_STEPS + 1):
        train_step(engine, batches, step, 1)
    module: Any = engine.module
    hook = module.register_forward_pre_hook(note)
    before = counters.counts()
    train_step(engine, batches, training.WARM_UP_STEPS + 1, 1)
    whole = counters.operations(counters.since(before))
    hook.remove()
    del engine, module
    gc.collect()
    torch.cuda.empty_cache()
    micro_batch = starts[1] - starts[0]
    print(way, encoder_layers, decoder_layers, micro_batch, whole, flush=True)
    return micro_batch, whole - MICRO_BATCHES * micro_batch


def _by_part(counted: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """`[encoder layer, decoder layer, all else]` of a micro-batch and of a step."""
    parts = {}
    for index, name in enumerate(("micro-batch", "step")):
        base, with_encoder, with_decoder = (numbers[index] for numbers in counted)
        encoder, decoder = with_encoder - base, with_decoder - base
        encoders, decoders = LAYERS[0]
        parts[name] = [encoder, decoder, base - encoders * encoder - decoders * decoder]
    return parts


if __name__ == "__main__":
    print(json.dumps(count(list(WAYS)), indent=1), flush=True)
