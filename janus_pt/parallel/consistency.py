"""What must be the same on several ranks, compared before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import nn

import janus_pt
from janus_pt.parallel.tensor import partition_dim
from janus_pt.utils.errors import UserError

Fingerprints = Mapping[str, str]
"""What a rank says of itself: a thing's name and a fingerprint. Ranks that name the same thing must agree on it."""


def check_identical(claims: Fingerprints) -> None:
    """Compare the claims of all ranks; all take part.

    Raises:
        UserError: on every rank, naming the first thing that differs and the ranks that have it otherwise.
    """
    told: list[Fingerprints] = [{}] * dist.get_world_size()
    dist.all_gather_object(told, dict(claims))
    first: dict[str, tuple[int, str]] = {}
    for rank, said in enumerate(told):
        for thing, value in said.items():
            origin, expected = first.setdefault(thing, (rank, value))
            if value != expected:
                others = [r for r, s in enumerate(told) if thing in s and s[thing] != expected]
                raise UserError(
                    f"{thing}: not the same on all ranks: {', '.join(map(str, others))} differ from {origin}; "
                    "start every process with the same files"
                )


def code_fingerprint() -> str:
    """sha256 of this package's source."""
    root = Path(janus_pt.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def parameter_fingerprints(model: nn.Module) -> Fingerprints:
    """Fingerprints of all parameters; a split one is another thing on every tensor-parallel rank."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    return {
        f"parameter {name}" + ("" if partition_dim(p) is None else f", part {rank}"): _fingerprint(
            p
        )
        for name, p in model.named_parameters()
    }


def _fingerprint(parameter: nn.Parameter) -> str:
    content = parameter.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(content.flatten().numpy().data).hexdigest()
