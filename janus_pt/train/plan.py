"""`--dry-run`: the plan of a run, without data, processes or memory for the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from janus_pt.config import Config
from janus_pt.model.janus import JanusTransformer

GIB = 2**30
MASTER_BYTES, ADAM_BYTES = 4, 8
"""A parameter's float32 master weight, and its two moments."""


def count_parameters(config: Config) -> int:
    """Trainable parameters, the tied embedding once."""
    with torch.device("meta"):
        return sum(p.numel() for p in JanusTransformer(config.model).parameters())


def plan(config: Config, world_size: int) -> Iterator[tuple[str, str]]:
    """Rows of the plan: what, and how much."""
    data, parameters = config.data, count_parameters(config)
    low = config.precision.dtype == "bfloat16"
    weight_bytes = 2 if low else 4
    optimizer = parameters * (ADAM_BYTES + MASTER_BYTES * low) / world_size
    yield "layout", f"{world_size} data-parallel ranks, ZeRO-{config.parallel.zero_stage}, {config.precision.dtype}"
    yield "parameters", f"{parameters:,}"
    yield "weights a rank", f"{parameters * weight_bytes / GIB:.2f} GiB"
    yield "gradients a rank", f"{parameters * 4 / GIB:.2f} GiB"
    yield "optimizer a rank", f"{optimizer / GIB:.2f} GiB"
    yield "a step", f"{data.global_batch_size:,} {data.batch_unit}, padding counted"
    yield "a micro-batch", f"{data.micro_batch_size:,} {data.batch_unit}"
    yield "gradient accumulation", f"{config.micro_batches_per_step // world_size} micro-batches a rank"
    yield (
        "the run",
        f"{config.run.max_steps:,} steps, {config.run.max_steps * data.global_batch_size:,} {data.batch_unit}",
    )


def print_plan(config: Config, world_size: int) -> None:
    """Print the plan as a table."""
    for what, amount in plan(config, world_size):
        print(f"{what:<24}{amount}")
