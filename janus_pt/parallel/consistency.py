"""Comparison of all ranks before the first step: same configuration, code, data and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import nn

from janus_pt.model.layer_factory import partition_dim
from janus_pt.utils.errors import UserError

Fingerprints = Mapping[str, str]
"""Things by name, each with a fingerprint of its content. Ranks that name the same thing must have
the same fingerprint of it."""


def check_identical(fingerprints: Fingerprints) -> None:
    """Compare the fingerprints of all ranks; all take part.

    Raises:
        UserError: on every rank, naming the first thing that differs and the ranks that differ.
    """
    # Objects are gathered, so each rank compares all and raises the same error: none goes on alone.
    by_rank: list[Fingerprints] = [{}] * dist.get_world_size()
    dist.all_gather_object(by_rank, dict(fingerprints))
    first_ranks: dict[str, int] = {}
    for rank, mapping in enumerate(by_rank):
        for thing, value in mapping.items():
            first = first_ranks.setdefault(thing, rank)
            if value != by_rank[first][thing]:
                raise _difference(thing, first, by_rank)


def _difference(thing: str, first: int, by_rank: Sequence[Fingerprints]) -> UserError:
    expected = by_rank[first][thing]
    others = [
        str(rank)
        for rank, mapping in enumerate(by_rank)
        if thing in mapping and mapping[thing] != expected
    ]
    return UserError(
        f"{thing}: not the same on all ranks: {', '.join(others)} differ from {first}; "
        "start every process with the same files"
    )


def code_fingerprint() -> str:
    """sha256 of this package's source."""
    root = Path(__file__).parent.parent  # the package's folder
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def parameter_fingerprints(model: nn.Module) -> Fingerprints:
    """Fingerprints of all parameters of this rank."""
    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    fingerprints = {}
    for name, parameter in model.named_parameters():
        thing = f"parameter {name}"
        # Each tensor-parallel rank has its own part of a split parameter. Only ranks with the same
        # part, which are data-parallel ones, must agree.
        if partition_dim(parameter) is not None:
            thing += f", part {tensor_rank}"
        fingerprints[thing] = _fingerprint(parameter)
    return fingerprints


def _fingerprint(parameter: nn.Parameter) -> str:
    # As bytes: numpy has no bfloat16.
    content = parameter.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(content.flatten().numpy().data).hexdigest()
