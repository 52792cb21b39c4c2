"""The fused losses against a plain computation with torch's own functions, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus_pt.model.output_bias import append_bias
from janus_pt.objectives.fused_loss import Terms, VocabShard, chunks, fused_losses

TERMS = Terms(("ar", "nar", "aux"), (("ar", "aux"), ("aux", "nar"), ("ar", "nar")), 0.1)


def plain_losses(
    hidden: dict[str, Tensor], weight: Tensor, targets: Tensor, terms: Terms
) -> Tensor:
    """Every term by log_softmax, cross_entropy and kl_div."""
    log_p = {name: F.log_softmax(h @ weight.t(), dim=-1) for name, h in hidden.items()}
    sums = [
        F.cross_entropy(
            hidden[s] @ weight.t(),
            targets[: len(hidden[s])],
            reduction="sum",
            label_smoothing=terms.label_smoothing,
        )
        for s in terms.streams
    ]
    for a, b in terms.pairs:
        rows = min(len(hidden[a]), len(hidden[b]))
        p, q = log_p[a][:rows], log_p[b][:rows]
        both = F.kl_div(q, p, reduction="sum", log_target=True) + F.kl_div(
            p, q, reduction="sum", log_target=True
        )
        sums.append(0.5 * both)
    return torch.stack(sums)


def inputs(
    seed: int, rows: int, masked: int, size: int, padded: int, width: int = 6
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    hidden = {"ar": make(rows, width), "nar": make(masked, width), "aux": make(masked, width)}
    return hidden, make(padded, width), torch.randint(size, (rows,), generator=generator)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.floats(0, 1),
    st.integers(2, 50),
    st.integers(0, 9),
    st.integers(1, 64),
)
def test_equal_to_the_plain_computation(
    seed: int, rows: int, share: float, size: int, padding: int, chunk: int
) -> None:
    hidden, weight, targets = inputs(seed, rows, int(share * rows), size, size + padding)
    coefficients = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows_before, chunks.CPU_ROWS = chunks.CPU_ROWS, chunk
    try:
        total, sums = fused_losses(hidden, weight, targets, coefficients, TERMS, VocabShard(size))
    finally:
        chunks.CPU_ROWS = rows_before
    expected = plain_losses(hidden, weight[:size], targets, TERMS)
    torch.testing.assert_close(sums, expected.detach(), rtol=1e-12, atol=1e-12)
    leaves = [weight, *hidden.values()]
    ours = torch.autograd.grad(3.0 * total, leaves)
    theirs = torch.autograd.grad(3.0 * (coefficients @ expected), leaves, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    assert ours[0][size:].abs().sum() == 0, "padding of the vocabulary got a gradient"


def test_an_output_bias_is_in_all_terms_and_gets_its_gradient() -> None:
    hidden, weight, targets = inputs(5, 9, 4, 20, 24)
    bias = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    bias.requires_grad_()
    coefficients = torch.linspace(0.2, 1.4, 6, dtype=torch.float64)
    wide = append_bias(weight, bias)
    total, sums = fused_losses(hidden, wide, targets, coefficients, TERMS, VocabShard(20))
    # A bias is the weight of a feature that is always 1.
    ones = {name: torch.cat((h, torch.ones_like(h[:, :1])), 1) for name, h in hidden.items()}
    table = torch.cat((weight, bias[:, None]), 1)[:20]
    expected = plain_losses(ones, table, targets, TERMS)
    torch.testing.assert_close(sums, expected.detach(), rtol=1e-12, atol=1e-12)
    leaves = [weight, bias, *hidden.values()]
    ours = torch.autograd.grad(total, leaves)
    theirs = torch.autograd.grad(coefficients @ expected, leaves)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, targets = inputs(0, 5, 3, 7, 9)
    coefficients = torch.tensor([1.0, 0.5, 0.5, 3.0, 1.0, 0.7], dtype=torch.float64)

    def total(w: Tensor, *streams: Tensor) -> Tensor:
        named = dict(zip(TERMS.streams, streams, strict=True))
        return fused_losses(named, w, targets, coefficients, TERMS, VocabShard(7))[0]

    assert torch.autograd.gradcheck(total, (weight, *hidden.values()))


def test_nothing_masked_is_zero_not_nan() -> None:
    hidden, weight, targets = inputs(1, 4, 0, 7, 7)
    total, sums = fused_losses(
        hidden, weight, targets, torch.ones(6, dtype=torch.float64), TERMS, VocabShard(7)
    )
    total.backward()
    assert (
        torch.isfinite(total)
        and sums[0] > 0
        and torch.equal(sums[1:], torch.zeros(5, dtype=torch.float64))
    )
    assert torch.isfinite(weight.grad).all()


def test_no_gradients_are_made_for_validation() -> None:
    hidden, weight, targets = inputs(2, 6, 3, 7, 7)
    with torch.no_grad():
        total, sums = fused_losses(
            hidden, weight, targets, torch.ones(6, dtype=torch.float64), TERMS, VocabShard(7)
        )
    assert not total.requires_grad
    torch.testing.assert_close(sums, plain_losses(hidden, weight, targets, TERMS).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_reduced_in_float32(dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs(3, 30, 12, 40, 40)
    low = {name: h.detach().to(dtype) for name, h in hidden.items()}
    _, sums = fused_losses(
        low, weight.detach().to(dtype), targets, torch.ones(6), TERMS, VocabShard(40)
    )
    assert sums.dtype == torch.float32
    expected = plain_losses(hidden, weight, targets, TERMS).float()
    torch.testing.assert_close(
        sums, expected, rtol=0.05 if dtype == torch.bfloat16 else 1e-5, atol=1e-4
    )


def test_a_small_divergence_is_not_lost_in_rounding() -> None:
    """Streams that nearly agree on nearly uniform distributions, as in the first steps of training."""
    hidden, weight, targets = inputs(4, 64, 64, 500, 500)
    near = {name: 1e-3 * h.detach() for name, h in hidden.items()}
    exact = fused_losses(near, weight.detach(), targets, torch.ones(6), TERMS, VocabShard(500))[1][
        3:
    ]
    low = {name: h.float() for name, h in near.items()}
    found = fused_losses(
        low, weight.detach().float(), targets, torch.ones(6), TERMS, VocabShard(500)
    )[1][3:]
    torch.testing.assert_close(found.double(), exact, rtol=5e-4, atol=0)
