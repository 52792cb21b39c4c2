"""The fused losses as a function that autograd knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from janus_pt.model.output_bias import match_bias
from janus_pt.objectives.fused_loss import eager
from janus_pt.objectives.fused_loss.terms import Terms, VocabShard, Walk
from janus_pt.utils.errors import UserError
from janus_pt.utils.extras import is_installed


def fused_losses(
    hidden: Mapping[str, Tensor],
    weight: Tensor,
    targets: Tensor,
    coefficients: Tensor,
    terms: Terms,
    vocab: VocabShard,
) -> tuple[Tensor, Tensor]:
    """The weighted total (differentiable) and the sums over rows of every term (for reports).

    Both results are equal on all tensor-parallel ranks. All ranks of `vocab.group` take part.

    Args:
        hidden: for each stream `[rows of the stream, hidden_size]`.
        weight: the output projection, `[local vocabulary, hidden_size]`, or with columns more for
            an output bias (`model/output_bias.py`).
        targets: `[rows]`; a row of target -1 is padding, and counts nothing.
        coefficients: `[terms]`, in the order of `terms.names`.

    Raises:
        UserError: the tensors are on a CUDA device, and Triton is not installed.
    """
    streams = [match_bias(hidden[name], weight) for name in terms.streams]
    return _FusedLosses.apply(weight, targets, coefficients, terms, vocab, *streams)


def walk_for(device: torch.device) -> Walk:
    """The walk for tensors on `device`: Triton's kernels on CUDA, PyTorch's operations elsewhere.

    Raises:
        UserError: Triton is needed and not installed.
    """
    if device.type != "cuda":
        return eager.walk
    require_triton()
    # Here and not above: PyTorch's builds for CPUs come without Triton.
    from janus_pt.objectives.fused_loss import cuda

    return cuda.walk


def require_triton() -> None:
    """Refuse, as `UserError`, to compute losses on a CUDA device without Triton."""
    if not is_installed("triton"):
        raise UserError(
            "Triton is not installed, and losses on a CUDA device need it (PyTorch's CUDA builds for"
            " Linux bring it along); run: pip install triton"
        )


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        targets: Tensor,
        coefficients: Tensor,
        terms: Terms,
        vocab: VocabShard,
        *hidden: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The total and the sums; arguments as of `fused_losses`."""
        # Losses are float32 sums even of bfloat16 states: J is a small difference of large numbers.
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        coefficients = coefficients.to(dtype)
        needs_gradient = any(ctx.needs_input_grad)
        walk = walk_for(weight.device)
        result = walk(list(hidden), weight, targets, coefficients, terms, vocab, needs_gradient)
        if result.grad_weight is not None:
            # Each rank has the part of its own tokens; the weight's gradient stays with its rows.
            for grad in result.grad_hidden:
                vocab.reduce(grad)
            ctx.save_for_backward(result.grad_weight.to(weight.dtype), *result.grad_hidden)
        ctx.mark_non_differentiable(result.sums)
        return coefficients @ result.sums, result.sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients were made in the forward walk; the total's own is a factor of them all.
        saved = ctx.saved_tensors
        factor = grads[0].to(saved[0].dtype)
        # All in one kernel on a GPU.
        weight, *hidden = torch._foreach_mul(list(saved), factor)
        return (weight, None, None, None, None, *hidden)
