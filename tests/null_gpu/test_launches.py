"""How many operations the host launches in a training step of `janus_base`, on the null GPU.

The layers and the vocabulary are `janus_base`'s, layers are narrower: that changes no operation.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from janus_pt.checks import read_config
from tests.support.null_gpu.processes import call, needs_null_gpu

pytestmark = [pytest.mark.null_gpu, needs_null_gpu]

MICRO_BATCHES, LENGTH = 3, 512
SETTINGS = [
    "data.batch_unit=sequences",
    "data.micro_batch_size=2",
    f"data.global_batch_size={2 * MICRO_BATCHES}",
    f"model.max_positions={LENGTH}",
    "model.attention_dropout=0.0",
    "model.hidden_size=128",
    "model.ffn_hidden_size=256",
    "model.num_attention_heads=2",
]
ONE_BY_ONE, IN_GRAPHS = 900, 60
"""Most operations of a micro-batch, with its share of the optimizer's."""


def operations() -> dict[str, Any]:
    """Of a step without and with CUDA graphs, by counter; all in this process."""
    from tests.support.null_gpu import training

    found = {}
    for key in ("false", "true"):
        config = read_config("configs/janus_base.json", [*SETTINGS, f"run.cuda_graphs={key}"], 1)
        engine = training.start(config)
        batches = training.step_batches(config, engine, LENGTH)
        cost = training.measure(engine, batches)
        found[key] = {"operations": cost.operations, **cost.counts}
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    return found


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    """What `operations` finds."""
    found: dict[str, Any] = call("tests.null_gpu.test_launches:operations")
    return found


def test_one_by_one(steps: dict[str, Any]) -> None:
    assert steps["false"]["operations"] <= MICRO_BATCHES * ONE_BY_ONE, steps


def test_in_graphs(steps: dict[str, Any]) -> None:
    counted = steps["true"]
    # A forward and a backward pass each.
    assert counted["graph_launches"] == 2 * MICRO_BATCHES
    assert counted["operations"] <= MICRO_BATCHES * IN_GRAPHS, counted
