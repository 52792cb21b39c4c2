"""Every kind of transfer that training makes, in every type that it has, with what must arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from janus_pt.benchmark.gpu_check.engine import device_computes
from janus_pt.benchmark.gpu_check.result import NOT_COMPARABLE, Result, verdict
from janus_pt.parallel import groups

SIZES = (1, 1000, 4_000_000)
"""Elements: NCCL has another protocol for small ones."""
TYPES = (torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64)
Transfer = Callable[[Tensor], tuple[Tensor, float]]
"""From a tensor of this rank's number to what came, and the number that all of it must be."""


def transfers() -> Result:
    """All collectives, and sending both ways between neighbours, as a pipeline does."""
    groups.initialize()
    ranks = dist.get_world_size()
    kinds: dict[str, Transfer] = {
        "all_reduce": _all_reduce,
        "all_gather": _all_gather,
        "reduce_scatter": _reduce_scatter,
        "broadcast": _broadcast,
        "to the next stage": lambda own: _send(own, +1),
        "to the stage before": lambda own: _send(own, -1),
    }
    problems = []
    done = 0
    for name, transfer in kinds.items():
        for own in _tensors():
            came, expected = transfer(own)
            if not bool((came == expected).all()):
                problems.append(f"{name} of {own.numel()} x {own.dtype}: {came[0]}, not {expected}")
            done += 1
    if not device_computes():
        return Result(NOT_COMPARABLE, f"{done} transfers made; the device computes nothing")
    problems_anywhere = torch.tensor([len(problems)], device=groups.device())
    dist.all_reduce(problems_anywhere)
    if int(problems_anywhere) and not problems:
        problems = ["another rank received something else than was sent"]
    return verdict(problems[:5], f"{done} transfers among {ranks} ranks", {"transfers": done})


def _tensors() -> Iterator[Tensor]:
    for dtype in TYPES:
        for size in SIZES:
            yield torch.full((size,), dist.get_rank() + 1, dtype=dtype, device=groups.device())


def _sum_of_ranks() -> float:
    ranks = dist.get_world_size()
    return ranks * (ranks + 1) / 2


def _all_reduce(own: Tensor) -> tuple[Tensor, float]:
    dist.all_reduce(own)
    return own, _sum_of_ranks()


def _all_gather(own: Tensor) -> tuple[Tensor, float]:
    parts = own.new_empty(dist.get_world_size() * own.numel())
    dist.all_gather_into_tensor(parts, own)
    # The last rank's part, of which every rank knows what it is.
    return parts[-own.numel() :], float(dist.get_world_size())


def _reduce_scatter(own: Tensor) -> tuple[Tensor, float]:
    whole = own.repeat(dist.get_world_size())
    part = torch.empty_like(own)
    dist.reduce_scatter_tensor(part, whole)
    return part, _sum_of_ranks()


def _broadcast(own: Tensor) -> tuple[Tensor, float]:
    dist.broadcast(own, src=0)
    return own, 1.0


def _send(own: Tensor, direction: int) -> tuple[Tensor, float]:
    """Along the chain of ranks, one after the other, as DeepSpeed's stages do: blocking."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    to, origin = rank + direction, rank - direction
    came, expected = own, float(rank + 1)
    has_origin, has_target = 0 <= origin < ranks, 0 <= to < ranks
    # Even ranks send first: two that both waited to send would wait for ever.
    for turn in (0, 1):
        if rank % 2 == turn and has_target:
            dist.send(own, to)
        elif rank % 2 != turn and has_origin:
            came, expected = torch.empty_like(own), float(origin + 1)
            dist.recv(came, origin)
    return came, expected
