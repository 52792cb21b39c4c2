"""Gradients handled together against DeepSpeed's own way, one by one: the same numbers, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.measured_memory import build_config, micro_batches
from tests.support.ranks import run_ranks

STEPS = 3


def _train(together: bool, immediate: bool) -> tuple[list[float], torch.Tensor]:
    """Norms of a few steps of two micro-batches, and the float32 weights after them."""
    from janus_pt.parallel import engine as engines
    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import assemble
    from janus_pt.train.step import train_step

    if not together:
        engines.batch_gradients = lambda optimizer: None
    config = build_config(
        vocab=200, hidden=32, length=32, accumulate=2, dtype="bfloat16", dropout=0.1
    )
    # Below every norm: all gradients are clipped.
    clipped = config.optimizer.model_copy(update={"clip_norm": 0.01})
    block: dict[str, Any] = {**config.deepspeed, "bf16": {"immediate_grad_update": immediate}}
    config = config.model_copy(update={"optimizer": clipped, "deepspeed": block})
    groups.initialize()
    engine = assemble(config)
    norms = []
    for step in range(1, STEPS + 1):
        train_step(engine, micro_batches(config, step), step, 1)
        norms.append(float(engine.get_global_grad_norm()))
    masters: Any = engine.optimizer
    weights = torch.cat([part.detach() for part in masters.fp32_groups_flat_partition])
    groups.shutdown()
    return norms, weights


def train(immediate: bool) -> tuple[bool, bool]:
    """Whether norms, and weights, are equal."""
    from janus_pt.parallel import engine as engines

    original = engines.batch_gradients
    norms, weights = _train(True, immediate)
    try:
        reference_norms, reference = _train(False, immediate)
    finally:
        engines.batch_gradients = original
    return norms == reference_norms, torch.equal(weights, reference)


@pytest.mark.parametrize("immediate", [False, True])
def test_sums_norm_and_clipping_are_deepspeeds(immediate: bool) -> None:
    assert run_ranks(train, 1, immediate) == [(True, True)]
