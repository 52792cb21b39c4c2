"""Whole weights from a running engine, whatever its layout, one after another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from megatron.core import parallel_state
from torch import Tensor, nn

from janus_pt.model.meta import full_shapes
from janus_pt.model.transformer import JanusTransformer
from janus_pt.parallel.tensor import full_tensor


def full_weights(model: JanusTransformer, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Name and unsharded float32 weight of all that is trained, on the CPU of the first rank, in the model's order.

    No more than one weight is whole at a time. All ranks must take all of them; others get empty tensors.
    """
    mine = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    held: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(held, list(mine))
    per_stage = (
        parallel_state.get_tensor_model_parallel_world_size()
        * parallel_state.get_data_parallel_world_size()
    )
    rank = dist.get_rank()
    for name, shape in full_shapes(model.config, model.adapter).items():
        owner = next(
            (r for r, names in enumerate(held) if name in names), None
        )  # first of the first stage with it
        if owner is None:
            continue
        weight = torch.empty(0)
        if rank // per_stage == owner // per_stage:
            weight = full_tensor(mine[name], master(mine[name]), shape)
        if owner != 0 and rank == owner:
            dist.send(weight.contiguous(), 0)
        if owner != 0 and rank == 0:
            weight = torch.empty(shape, device=device)
            dist.recv(weight, owner)
        yield name, weight.cpu() if rank == 0 else torch.empty(0)


def master(parameter: nn.Parameter) -> Tensor:
    """The float32 weight of this tensor-parallel rank; the data-parallel ranks that share it out take part."""
    weight = safe_get_full_fp32_param(parameter)
    return (parameter if weight is None else weight).detach().float()
