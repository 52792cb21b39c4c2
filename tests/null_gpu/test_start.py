"""One rank of a job of 1,024: what it opens and gathers at its start, on the null GPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.null_gpu.processes import call, needs_null_gpu

pytestmark = [pytest.mark.null_gpu, needs_null_gpu]
RANKS = 1024
DENSE = {"attention_dropout": 0.1, "num_attention_heads": 4}
LAYOUTS: dict[str, dict[str, Any]] = {
    "DP1024": {"model": DENSE, "ranks": RANKS},
    "TP4 x PP4 x DP64": {
        "model": {**DENSE, "encoder_layers": 4, "decoder_layers": 4},
        "parallel": {"tensor_parallel_size": 4, "pipeline_parallel_size": 4},
        "micro_batches": 4,
        "ranks": RANKS // 16,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_of_1024_opens_few_communicators_and_gathers_little(layout: str) -> None:
    found = call("tests.support.null_gpu.start:start", 21, RANKS, LAYOUTS[layout])
    assert found["communicators"] <= 40, found
    # Splits are collectives of all ranks, also for groups that they are not in.
    assert found["splits"] == 0, found
    assert found["gathered bytes"] <= 1_000_000, found
