"""Several linear layers that read the same input, as one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus_pt.model.layer_factory import ALONE


def joint_linear(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What each of the layers makes of `x`.

    On a GPU one product, forward and backward, takes less than several small ones.
    """
    if not x.is_cuda or any(_must_be_called(layer) for layer in layers):
        return tuple(layer(x) for layer in layers)
    weights = [layer.get_parameter("weight") for layer in layers]
    biases = [layer.get_parameter("bias") for layer in layers]
    outputs: tuple[Tensor, ...] = JointLinear.apply(x, *weights, *biases)
    return outputs


def _must_be_called(layer: nn.Module) -> bool:
    """Whether a call of the layer does more than its product."""
    # An adapter; ZeRO-3, which brings the weights.
    has_hooks = bool(layer._forward_hooks or layer._forward_pre_hooks)
    # Of rows that were gathered for it the layer keeps only its rank's.
    return has_hooks or getattr(layer, "rows", ALONE) is not ALONE


class JointLinear(torch.autograd.Function):
    """`x`, the layers' weights, then as many biases -> the layers' outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Outputs are parts of one tensor."""
        half = len(parameters) // 2
        weights, biases = parameters[:half], parameters[half:]
        ctx.save_for_backward(x, *weights)
        ctx.sizes = [len(weight) for weight in weights]
        return F.linear(x, joined(weights), joined(biases)).split(ctx.sizes, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Gradients in the order of the inputs; weights share one tensor of gradients, biases another."""
        x, *weights = ctx.saved_tensors
        gradient = torch.cat(gradients, dim=-1).flatten(0, -2)
        grad_x = (gradient @ joined(weights)).view_as(x)
        grad_weight = gradient.t() @ x.flatten(0, -2)
        grad_bias = gradient.sum(0)
        return grad_x, *grad_weight.split(ctx.sizes), *grad_bias.split(ctx.sizes)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors one after another along the first dimension; without a copy if they lie so in memory.

    DeepSpeed lays the parameters of an optimizer's group out in their order, in one block of memory.
    """
    first = tensors[0]
    storage = first.untyped_storage()._cdata
    end = first.storage_offset()
    for tensor in tensors:
        is_next = tensor.untyped_storage()._cdata == storage and tensor.storage_offset() == end
        if not is_next or not tensor.is_contiguous():
            return torch.cat(list(tensors))
        end += tensor.numel()
    rows = sum(len(tensor) for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
