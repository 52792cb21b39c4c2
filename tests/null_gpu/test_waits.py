"""How often the host waits for the device in a training step, on the null GPU."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.support.null_gpu.processes import call, needs_null_gpu

pytestmark = [pytest.mark.null_gpu, needs_null_gpu]
COSTS = "tests.support.null_gpu.cases:costs"

TRANSLATION = {"recipe": "translation"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "janus": {},
    "janus, R-Drop": {"objective": {"r_drop": 1.0}},
    "ar": {"objective": {"name": "ar"}},
    "joint": {"objective": {"name": "joint"}},
    "bang": {"objective": {"name": "bang"}},
    "bang_nar": {"objective": {"name": "bang_nar", **TRANSLATION}},
    "cmlm": {"objective": {"name": "cmlm", **TRANSLATION}},
    "cmlmc": {"objective": {"name": "cmlmc", **TRANSLATION}},
    "ctc": {"objective": {"name": "ctc", **TRANSLATION}},
}
ZERO = {f"ZeRO-{stage}": {"parallel": {"zero_stage": stage}} for stage in (1, 2, 3)}
RANKS = 2
DENSE: dict[str, Any] = {"model": {"attention_dropout": 0.1}, "ranks": RANKS}
STEPS = {
    f"{objective}: {zero}": {**DENSE, **OBJECTIVES[objective], **ZERO[zero]}
    for objective, zero in product(OBJECTIVES, ZERO)
} | {
    "block masks": {"ranks": RANKS},
    "recompute": {**DENSE, "parallel": {"activation_checkpointing": True}},
    "float32": {"dtype": "float32", **DENSE},
    "no clipping": {"clip_norm": 0.0, **DENSE},
}
"""With dense masks where nothing else is said, which have nothing to compile; and with clipping."""


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    """What a step of each case costs."""
    found: dict[str, Any] = call(COSTS, STEPS, rank=0, ranks=RANKS)
    return found


@pytest.mark.parametrize("case", STEPS)
def test_a_step_waits_for_the_norm_alone(steps: dict[str, Any], case: str) -> None:
    assert sum(steps[case]["waits"].values()) <= 1, steps[case]["waits"]


PIPELINE = {**DENSE, "ranks": 1, "parallel": {"pipeline_parallel_size": 2}, "micro_batches": 4}


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_waits_once_in_a_step_of_four_micro_batches(stage: int) -> None:
    found = call(COSTS, {"pipeline": PIPELINE}, rank=stage, ranks=2)["pipeline"]
    assert found["micro_batches"] == 4
    assert sum(found["waits"].values()) <= 1, found["waits"]
