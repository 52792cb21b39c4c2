"""FlexAttention compiled for sm_90 under the project's masks, on the null GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.null_gpu.processes import call, needs_null_gpu

pytestmark = [pytest.mark.null_gpu, needs_null_gpu]
TRANSLATION = {"recipe": "translation"}
CASES: dict[str, dict[str, Any]] = {
    "janus": {},
    "ar": {"objective": {"name": "ar"}},
    "joint": {"objective": {"name": "joint"}},
    "bang": {"objective": {"name": "bang"}},
    "bang_nar": {"objective": {"name": "bang_nar", **TRANSLATION}},
    "cmlm": {"objective": {"name": "cmlm", **TRANSLATION}},
    "cmlmc, causal": {
        "model": {"causal_self_attention": True},
        "objective": {"name": "cmlmc", **TRANSLATION},
    },
}


@pytest.mark.parametrize("head_size", [64, 80, 128])
def test_no_kernel_spills_registers(tmp_path: Path, head_size: int) -> None:
    # In empty folders, so that all is compiled here.
    caches = {
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    stack = call("tests.support.null_gpu.attention:stack_bytes", head_size, **caches)
    kernels = {f"{m}, {d}" for m in ("slots", "sources") for d in ("forward", "backward")}
    assert stack == dict.fromkeys(kernels, 0)


@pytest.fixture(scope="module")
def lives() -> dict[str, Any]:
    """Graphs and calls of a short run of each objective."""
    found: dict[str, Any] = call("tests.support.null_gpu.attention:lives", CASES)
    return found


@pytest.mark.parametrize("case", CASES)
def test_attention_is_never_run_unfused(lives: dict[str, Any], case: str) -> None:
    assert lives[case]["eager calls"] == 0


@pytest.mark.parametrize("case", CASES)
def test_each_mask_is_compiled_with_and_without_a_gradient(
    lives: dict[str, Any], case: str
) -> None:
    """Once each, whatever the sizes: of samples, for the encoder and cross-attention, of the slots, and causal."""
    masks = 3 if CASES[case].get("model") else 2
    assert lives[case]["graphs"]["resumed"] == 2 * masks, lives[case]
