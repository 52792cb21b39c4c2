"""A training step of the real engine on the null GPU: batches, engine, and what a step costs."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from janus_pt.config.schema import Config
from janus_pt.model.masks import uses_block_masks
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.packing.batch import Batch
from janus_pt.packing.example import BOUNDARY_TOKENS
from janus_pt.parallel import groups
from janus_pt.parallel.assemble import assemble
from janus_pt.parallel.engine import Engine
from janus_pt.train.step import train_step
from tests.support.null_gpu import counters
from tests.support.null_gpu.waits import watch_waits

# ZeRO-3 formats all parameters when it starts. Their values, and how many are not zero, mean nothing.
torch.nn.Parameter.__repr__ = object.__repr__  # type: ignore[method-assign]

WARM_UP_STEPS = 2
"""The first step makes the optimizer's state, and compiles."""


@dataclass
class StepCost:
    """What one step asked of the device and of the host."""

    operations: int
    micro_batches: int
    counts: dict[str, int]
    waits: dict[str, int]
    """By kind and place."""
    processor_s: float
    """Processor time of the whole process, the median of the repetitions."""
    peak_bytes: int
    """`torch.cuda.max_memory_allocated`."""
    reserved_bytes: int
    transfers: list[counters.Transfer] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without zeros."""
        found = asdict(self)
        found["counts"] = {name: number for name, number in self.counts.items() if number}
        return found


def make_batch(config: Config, seed: int, length: int, shortest: int | None = None) -> Batch:
    """A pinned micro-batch of random samples of `length` tokens, or of `shortest` to `length`."""
    model, objective = config.model, config.objective
    rng = np.random.default_rng(seed)

    def example() -> Any:
        tokens = length if shortest is None else int(rng.integers(shortest, length + 1))
        text = rng.integers(5, model.common_vocab_size, tokens - BOUNDARY_TOKENS)
        pair = {"source": text, "target": text[::-1].copy()}
        fields = {"text": text} if objective.masking.kind == "infill" else pair
        return make_example(fields, rng, model=model, objective=objective)

    size = config.data.micro_batch_size
    samples = size // length if config.data.batch_unit == "tokens" else size
    has_blocks = uses_block_masks(groups.device(), model.attention_dropout, model.head_size)
    examples = [example() for _ in range(samples)]
    blocks_for = model if has_blocks else None
    batch = collate_examples(examples, objective, blocks_for, config.run.cuda_graphs)
    return batch.pin_memory()


def start(config: Config) -> Engine:
    """The engine of a configuration, in this process's rank."""
    groups.initialize(config.parallel.tensor_parallel_size, config.parallel.pipeline_parallel_size)
    return assemble(config)


def step_batches(config: Config, engine: Engine, length: int) -> list[Batch]:
    """The micro-batches of a step."""
    count = engine.gradient_accumulation_steps()
    # A pipeline may have many: some that differ are enough.
    some = [make_batch(config, seed, length) for seed in range(min(count, 8))]
    return [some[index % len(some)] for index in range(count)]


def measure(engine: Engine, batches: Sequence[Batch], repetitions: int = 0) -> StepCost:
    """What a step costs after the first ones; all counters of NCCL are of this step."""
    for step in range(1, WARM_UP_STEPS + 1):
        train_step(engine, batches, step, 1)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    counters.forget_transfers()
    counters.kernels()
    before = counters.counts()
    with watch_waits() as waits:
        train_step(engine, batches, WARM_UP_STEPS + 1, 1)
    counted = counters.since(before)
    transfers = list(counters.transfers())
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    seconds = [_processor_time(engine, batches, step) for step in range(4, 4 + repetitions)]
    return StepCost(
        counters.operations(counted),
        len(batches),
        counted,
        dict(waits.most_common()),
        float(np.median(seconds)) if seconds else 0.0,
        peak,
        reserved,
        transfers,
    )


def _processor_time(engine: Engine, batches: Sequence[Batch], step: int) -> float:
    start = time.process_time()
    train_step(engine, batches, step, 1)
    return time.process_time() - start
