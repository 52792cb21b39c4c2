"""A norm that the host reads once, against DeepSpeed's own way: the same updates, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.measured_memory import build_config, micro_batches
from tests.support.ranks import run_ranks

CASES = {
    "ZeRO-1, bfloat16": {"dtype": "bfloat16"},
    "ZeRO-1, float32": {},
    "ZeRO-2, bfloat16": {"dtype": "bfloat16", "zero": 2},
    "ZeRO-3, bfloat16": {"dtype": "bfloat16", "zero": 3},
}
STEPS = 3
BROKEN = 1
"""The step in which a gradient is infinite."""


def _train(case: dict[str, Any], once: bool) -> tuple[list[float], list[Tensor]]:
    """Norms of a few steps, and the float32 weights after each."""
    from janus_pt.parallel import engine as engines
    from janus_pt.parallel import groups, host_waits
    from janus_pt.parallel.assemble import assemble
    from janus_pt.train.report.phases import Phases
    from janus_pt.train.step import run_step

    if not once:
        engines.avoid_waits = lambda optimizer: None
        host_waits.bf16_optimizer.get_global_norm_of_tensors = host_waits._deepspeed_norm
    config = build_config(vocab=200, hidden=32, length=32, **case)
    # Below every norm: all gradients are clipped.
    clipped = config.optimizer.model_copy(update={"clip_norm": 0.01})
    config = config.model_copy(update={"optimizer": clipped})
    groups.initialize()
    engine = assemble(config)
    norms, weights = [], []
    for step in range(STEPS):
        coefficients = torch.ones(len(engine.module.loss.names))
        if step == BROKEN:
            coefficients *= torch.inf
        phases = Phases(engine.device)
        run_step(engine, micro_batches(config, step), coefficients, [(1, step)], phases)
        norms.append(float(engine.get_global_grad_norm()))
        weights.append(_masters(engine.optimizer))
    groups.shutdown()
    return norms, weights


def _masters(optimizer: Any) -> Tensor:
    for name in (
        "fp32_groups_flat_partition",
        "single_partition_of_fp32_groups",
        "fp32_partitioned_groups_flat",
    ):
        if hasattr(optimizer, name):
            return torch.cat([part.detach().clone() for part in getattr(optimizer, name)])
    raise AssertionError(type(optimizer).__name__)


def compare(case: dict[str, Any]) -> tuple[list[float], list[float], list[bool], bool]:
    """Norms both ways, whether weights are equal after each step, and whether the broken step left
    them as they were."""
    from janus_pt.parallel import engine as engines

    original = engines.avoid_waits
    norms, weights = _train(case, True)
    try:
        reference_norms, reference = _train(case, False)
    finally:
        engines.avoid_waits = original
    same = [torch.equal(*pair) for pair in zip(weights, reference, strict=True)]
    return norms, reference_norms, same, torch.equal(weights[BROKEN], weights[BROKEN - 1])


@pytest.mark.parametrize("case", CASES)
def test_norms_clipping_and_steps_left_out_are_deepspeeds(case: str) -> None:
    [(norms, reference, same, left_out)] = run_ranks(compare, 1, CASES[case])
    assert norms == reference
    assert norms[BROKEN] == float("inf") and all(0 < norm < 1e6 for norm in norms[:BROKEN])
    assert same == [True] * STEPS
    assert left_out
