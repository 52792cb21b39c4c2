"""One model on several layouts: the same losses and gradient norms."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state

from janus_pt.benchmark.gpu_check.engine import (
    LENGTH,
    device_computes,
    random_batch,
    small_config,
    start,
)
from janus_pt.benchmark.gpu_check.result import FAILED, NOT_COMPARABLE, PASSED, Result
from janus_pt.config.schema import Config
from janus_pt.parallel.engine import Engine
from janus_pt.train.step import report, train_step

STEPS, MICRO_BATCHES = 3, 4
DIFFERENCE = 1e-3
"""Relative, in float32: layouts add in another order, and AdamW makes more of it."""
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    # name: (ranks, section `parallel`)
    "1 rank": (1, {}),
    "data 2": (2, {}),
    "data 2, ZeRO-2": (2, {"zero_stage": 2}),
    "data 2, ZeRO-3": (2, {"zero_stage": 3}),
    "tensor 2": (2, {"tensor_parallel_size": 2}),
    "pipeline 2": (2, {"pipeline_parallel_size": 2}),
    "tensor 2, data 2": (4, {"tensor_parallel_size": 2}),
    "tensor 2, pipeline 2": (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
    "pipeline 2, data 2": (4, {"pipeline_parallel_size": 2}),
    "tensor 2, pipeline 2, data 2": (
        8,
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    ),
}
"""The first is what the others are compared with."""


def train_small_model(parallel: dict[str, Any]) -> Result:
    """Loss and gradient norm of some steps on this layout."""
    config = small_config(parallel, micro_batches=MICRO_BATCHES)
    engine = start(config)
    if not device_computes():
        # The steps are taken all the same: that they can be is worth knowing.
        take_steps(engine, config, range(1, STEPS + 1))
        return Result(NOT_COMPARABLE, "trained; the device computes nothing")
    numbers = take_steps(engine, config, range(1, STEPS + 1))
    return Result(PASSED, "trained", numbers)


def take_steps(engine: Engine, config: Config, steps: range) -> dict[str, list[float]]:
    """Train, on the same samples in every layout; losses and gradient norms."""
    rank = parallel_state.get_data_parallel_rank()
    ranks = parallel_state.get_data_parallel_world_size()
    losses, norms = [], []
    for step in steps:
        batches = [
            random_batch(config, LENGTH, seed=MICRO_BATCHES * step + index)
            for index in range(rank, MICRO_BATCHES, ranks)
        ]
        result = train_step(engine, batches, step, config.run.seed)
        losses.append(report(engine.module.loss, result)["loss/total"])
        norms.append(float(engine.get_global_grad_norm()))
    return {"loss": losses, "grad_norm": norms}


def compare_layouts(results: dict[str, Result]) -> None:
    """Make a failure of every layout whose numbers are not the first one's."""
    first, *others = results.values()
    for other in others:
        if other.status != PASSED:
            continue
        if first.status != PASSED:
            other.status, other.message = NOT_COMPARABLE, "trained; one rank alone did not"
            continue
        worst = 0.0
        for name, expected in first.numbers.items():
            found = torch.tensor(other.numbers[name], dtype=torch.float64)
            wanted = torch.tensor(expected, dtype=torch.float64)
            # NaN must not look like a small difference.
            difference = ((found - wanted) / wanted).abs().nan_to_num(torch.inf)
            worst = max(worst, float(difference.max()))
        other.numbers["difference"] = worst
        other.message = f"differs from one rank by {worst:.1e}"
        if worst > DIFFERENCE:
            other.status = FAILED
