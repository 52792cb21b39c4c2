"""DeepSpeed's bfloat16 optimizer, with many gradients in each kernel instead of one.

It adds each parameter's gradient to its float32 sum, takes its norm and clips it by itself: for a
model of some hundred parameters some thousand kernels a step, each too small for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

from janus_pt.parallel.gradient_shares import GradientShares

PENDING_ELEMENTS = 1 << 25
"""Gradients wait until they are so many: bounds their memory, and their float32 copies'."""


def batch_gradients(
    engine: Any, reduce_dtype: torch.dtype, captured: bool = False
) -> GradientSums | None:
    """Make DeepSpeed's bfloat16 optimizer handle gradients together, and reduce to each data-parallel
    rank what it keeps (`gradient_shares.py`); leaves any other optimizer as it is.

    Args:
        captured: passes are recorded as graphs (`captured_pass.py`).
    """
    optimizer = engine.optimizer
    if not isinstance(optimizer, BF16_Optimizer):
        return None
    shares = GradientShares(engine, reduce_dtype, captured)
    sums = GradientSums(optimizer, shares)
    engine.buffered_allreduce_fallback = shares.reduce
    # Called for each gradient: by hooks as soon as it is there, and after a backward pass.
    optimizer._update_hp_grad = sums.collect
    optimizer.update_hp_grads = sums.collect_rest
    optimizer.get_grads_for_norm = sums.for_norm
    return sums


class GradientSums:
    """Adds gradients of a backward pass to DeepSpeed's float32 sums, and hands these out.

    Same sums, bit for bit, as DeepSpeed's own; on a GPU the norm is rounded otherwise.
    """

    def __init__(self, optimizer: BF16_Optimizer, shares: GradientShares) -> None:
        self._optimizer = optimizer
        self._shares = shares
        self._for_norm = optimizer.get_grads_for_norm
        self._places = {
            id(parameter): (group, index)
            for group, parameters in enumerate(optimizer.bf16_groups)
            for index, parameter in enumerate(parameters)
        }
        # Sums and the gradients that wait to be added, in pairs.
        self._sums: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._pending = 0

    @torch.no_grad()
    def take(self, parameter: Any, gradient: Tensor) -> None:
        """Remember a gradient; at the latest `add` adds it to its sum."""
        group, index = self._places[id(parameter)]
        total = self._optimizer.fp32_groups_gradients[group][index]
        parameter._hp_grad = total
        self._optimizer.fp32_groups_has_gradients[group][index] = True
        self._sums.append(total)
        self._gradients.append(gradient.reshape(-1))
        self._pending += total.numel()
        if self._pending >= PENDING_ELEMENTS:
            self.add()

    @torch.no_grad()
    def add(self) -> None:
        """Add what is remembered."""
        if not self._sums:
            return
        # Of two dtypes only copies are done together; sums would be one by one.
        copies = [torch.empty_like(total) for total in self._sums]
        torch._foreach_copy_(copies, self._gradients)
        torch._foreach_add_(self._sums, copies)
        self._shares.complete(self._sums)
        self._sums, self._gradients, self._pending = [], [], 0

    def mark(self, parameters: Iterable[Any]) -> None:
        """Say that these parameters have a gradient, where `take` was not called for it."""
        for parameter in parameters:
            group, index = self._places[id(parameter)]
            self._optimizer.fp32_groups_has_gradients[group][index] = True

    def collect(self, parameter: Any, *_: Any, **__: Any) -> None:
        """Take a parameter's gradient from it; what DeepSpeed's hooks call."""
        if parameter.grad is None:
            return
        self.take(parameter, parameter.grad)
        # The next backward pass makes a new one: nothing to set to zero.
        parameter.grad = None

    def collect_rest(self, **_: Any) -> None:
        """Take all gradients that no hook has taken; all sums are complete afterwards."""
        for parameters in self._optimizer.bf16_groups:
            for parameter in parameters:
                self.collect(parameter)
        self.add()

    @torch.no_grad()
    def for_norm(self, for_clipping: bool = False) -> Any:
        """Tensors whose norm is the gradient's, and none of experts; or those that clipping scales."""
        if for_clipping:
            return self._shares.tensors
        gradients, experts = self._for_norm()
        if not self._shares.are_all:
            return [self._shares.norm(self._shares.own(gradients))], experts
        if not gradients or not gradients[0].is_cuda:
            return gradients, experts
        # The norm of the norms is the norm.
        return [torch.stack(torch._foreach_norm(gradients))], experts
