"""The losses' Triton kernels without a GPU: their numbers by Triton's interpreter, their machine code by ptxas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from janus_pt.objectives.fused_loss import Terms, VocabShard, chunk_rows
from janus_pt.objectives.r_drop import both_draws
from janus_pt.utils.errors import UserError

pytest.importorskip("triton", reason="the losses' kernels on CUDA are Triton's: pip install triton")

from janus_pt.objectives import ctc_kernel
from janus_pt.objectives.fused_loss import cuda, function, kernels
from tests.support.triton.launches import Launch, recorded

JANUS = Terms(("ar", "nar", "aux"), (("ar", "aux"), ("aux", "nar"), ("ar", "nar")), 0.1)
FLOAT32 = 1e-6
"""Farthest from the exact numbers, and of the terms from those on a CPU."""
PRODUCT = 3e-6
"""Farthest of a float32 product over 1,100 tokens, here and on a CPU."""


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, float]]:
    """How far the interpreted kernels are from other computations, case by case.

    In a process of its own: a kernel is either interpreted or compiled for as long as a process lives."""
    return interpreted("tests.support.triton.interpreted")


def interpreted(program: str) -> dict[str, dict[str, float]]:
    """What a program prints under Triton's interpreter."""
    command = [sys.executable, "-W", "ignore", "-m", program]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_equal_to_autograd_in_float64(differences: dict[str, dict[str, float]]) -> None:
    assert max(differences["float64"].values()) < 1e-13


def test_padding_counts_nothing(differences: dict[str, dict[str, float]]) -> None:
    assert differences["padding"].pop("gradient of padding") == 0
    assert max(differences["padding"].values()) < 1e-13


@pytest.mark.parametrize(
    "case", ["float32", "R-Drop", "one stream, no smoothing", "nothing masked"]
)
def test_float32_is_exact_and_as_on_a_cpu(
    differences: dict[str, dict[str, float]], case: str
) -> None:
    found = differences[case]
    assert max(found["sums"], found["weight"], found["apart"]) < FLOAT32
    # The rest is a product over the vocabulary in float32, whose own rounding is the larger part.
    assert max(found["hidden"], found["eager hidden"]) < PRODUCT


def test_two_ranks_are_one(differences: dict[str, dict[str, float]]) -> None:
    assert max(differences["two ranks"].values()) < FLOAT32


def test_bfloat16_rounds_the_gradient_alone(differences: dict[str, dict[str, float]]) -> None:
    found = differences["bfloat16"]
    assert found["sums"] < FLOAT32
    # A number of bfloat16 has 8 bits: 2^-9 of it is lost, once in the logits' gradient and once in the result.
    assert max(found["weight"], found["hidden"]) < 2**-7


def test_a_small_divergence_is_not_lost_in_rounding(
    differences: dict[str, dict[str, float]],
) -> None:
    found = differences["streams that nearly agree"]
    assert found["kernels"] < 1e-5
    assert found["kernels"] < found["eager"]


def test_ctc_is_the_sum_over_paths() -> None:
    """Beside torch's own loss in float64, which `test_ctc.py` holds to all paths of small cases."""
    found = interpreted("tests.support.triton.paths")
    assert max(found["torch.float64"].values()) < 1e-13
    # A path's log-probability is a float32 near 100, which is exact to 4e-6, and a share is a difference of three.
    assert found["torch.float32"]["losses"] < FLOAT32
    assert max(found["torch.float32"].values()) < 3 * 4e-6


def ctc_launch(samples: int, rows: int, labels: int) -> Launch:
    """The launch of CTC's kernel."""
    with torch.device("meta"), recorded(ctc_kernel) as made:
        ctc_kernel.losses_and_shares(
            torch.empty(samples, rows, labels + 1),
            torch.empty(samples, labels, dtype=torch.int64),
            torch.empty(samples, dtype=torch.int64),
            torch.empty(samples, dtype=torch.int64),
        )
    (launch,) = made
    return launch


@pytest.mark.parametrize("labels", [30, 400])
def test_ctc_is_compiled_without_spills(labels: int, tmp_path: Path) -> None:
    check_machine_code([ctc_launch(16, 2 * labels, labels)], 90, tmp_path)


class Shard(VocabShard):
    """A shard whose sums stay as they are."""

    def reduce(self, value: torch.Tensor, op: object = None) -> torch.Tensor:
        """Return `value`."""
        return value


def launches(terms: Terms, dtype: torch.dtype, vocab_rows: int = 50_000) -> list[Launch]:
    """What a walk over 1,000 targets launches, 300 of them masked, as one rank of several."""
    with torch.device("meta"):
        lengths = [1000 if name.startswith("ar") else 300 for name in terms.streams]
        hidden = [torch.empty(length, 768, dtype=dtype) for length in lengths]
        weight = torch.empty(vocab_rows, 768, dtype=dtype)
        targets = torch.empty(1000, dtype=torch.int64)
        coefficients = torch.empty(len(terms.names))
    # Any object stands for a group: `Shard` exchanges nothing.
    vocab = Shard(vocab_rows, 0, object())  # type: ignore[arg-type]
    with recorded(kernels) as made:
        cuda.walk(hidden, weight, targets, coefficients, terms, vocab, True)
    return made


def check_machine_code(made: list[Launch], capability: int, folder: Path) -> None:
    """Compile what is launched; nothing may be spilled, and logits are read 16 bytes at a time."""
    for launch in {launch.source().hash(): launch for launch in made}.values():
        machine = launch.compile(capability)
        usage = machine.usage(folder)
        assert usage["STACK"] == usage["LOCAL"] == 0, (launch.name, usage)
        if "logits" in launch.arguments:
            assert "ld.global.v4" in machine.ptx, launch.name


# Launches are recorded with tensors that have no data.
needs_out_dtype = pytest.mark.skipif(
    torch.__version__.startswith("2.8."), reason="its mm has no out_dtype for such tensors"
)


@needs_out_dtype
def test_compiled_for_an_h100_without_spills(tmp_path: Path) -> None:
    # A vocabulary of an odd number of tokens: rows are aligned all the same.
    check_machine_code(launches(JANUS, torch.bfloat16, 49_999), 90, tmp_path)


@needs_out_dtype
@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "terms", "dtype"),
    [
        (80, JANUS, torch.bfloat16),
        (100, JANUS, torch.bfloat16),
        (90, JANUS, torch.float32),
        (90, both_draws(JANUS), torch.bfloat16),
    ],
)
def test_compiled_without_spills(
    capability: int, terms: Terms, dtype: torch.dtype, tmp_path: Path
) -> None:
    check_machine_code(launches(terms, dtype), capability, tmp_path)


@needs_out_dtype
def test_launches_of_a_chunk() -> None:
    """A kernel forward and one backward a chunk; one more where ranks share the vocabulary."""
    made = [launch.name for launch in launches(JANUS, torch.bfloat16)]
    chunk = ["sum_rows", "to_shared_highest", "write_gradient"]
    # 300 targets of three streams and 700 of one: a chunk each.
    assert chunk_rows(50_000, on_cpu=False) > 900
    assert made == [*chunk, "sum_terms"] * 2


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "is_installed", lambda package: package != "triton")
    with pytest.raises(UserError, match=r"Triton is not installed.*pip install triton"):
        function.walk_for(torch.device("cuda"))
