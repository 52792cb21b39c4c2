"""Unsharded weights from a running engine, whatever its layout, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from megatron.core import parallel_state
from torch import Tensor, nn

from janus_pt.model.meta import full_shapes
from janus_pt.model.transformer import JanusTransformer
from janus_pt.parallel.tensor import full_tensor


def full_weights(model: JanusTransformer, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Name and unsharded float32 weight of each trained parameter, in the model's order.

    The weight is on the CPU of the first rank; other ranks get an empty tensor. Only one weight is
    whole at a time. All ranks must take all of them, since each takes part in gathering.
    """
    local = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    names_by_rank: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(names_by_rank, list(local))
    for name, shape in full_shapes(model.config, model.adapter).items():
        owner = _first_owner(name, names_by_rank)
        if owner is None:
            continue
        weight = torch.empty(0)
        # The owner's tensor- and data-parallel ranks put the weight together on its stage.
        if _is_on_same_stage(owner):
            parameter = local[name]
            weight = full_tensor(parameter, master(parameter), shape)
        weight = _send_to_first_rank(weight, owner, shape, device)
        yield name, weight.cpu() if dist.get_rank() == 0 else torch.empty(0)


def _first_owner(name: str, names_by_rank: Sequence[Sequence[str]]) -> int | None:
    """The first rank that holds a parameter, so one of the first stage that does."""
    for rank, names in enumerate(names_by_rank):
        if name in names:
            return rank
    return None


def _is_on_same_stage(rank: int) -> bool:
    """Whether this rank and `rank` belong to the same pipeline stage. Stages are runs of ranks."""
    tensor_ranks = parallel_state.get_tensor_model_parallel_world_size()
    data_ranks = parallel_state.get_data_parallel_world_size()
    ranks_per_stage = tensor_ranks * data_ranks
    return dist.get_rank() // ranks_per_stage == rank // ranks_per_stage


def _send_to_first_rank(
    weight: Tensor, owner: int, shape: torch.Size, device: torch.device
) -> Tensor:
    """The owner's weight on the first rank; other ranks get back their own `weight`."""
    if owner == 0:
        return weight
    if dist.get_rank() == owner:
        dist.send(weight.contiguous(), 0)
    if dist.get_rank() == 0:
        weight = torch.empty(shape, device=device)
        dist.recv(weight, owner)
    return weight


def master(parameter: nn.Parameter) -> Tensor:
    """This tensor-parallel rank's float32 weight; the data-parallel ranks that share it take part."""
    weight = safe_get_full_fp32_param(parameter)
    # Without ZeRO in float32 there is no copy: the parameter itself is the master weight.
    return (parameter if weight is None else weight).detach().float()
