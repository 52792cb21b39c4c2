"""Comparison of all ranks before the first step: same configuration, code, data and weights."""

from __future__ import annotations

import hashlib
from collections import defaultdict
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
TABLES = ("embed_tokens", "embed_source")
"""Parameters that several stages of a pipeline hold."""


def check_identical(*sets: Fingerprints) -> None:
    """Compare the fingerprints of all ranks; all take part.

    A set is a unit: two ranks that have a thing of it in common have all of it in common.

    Raises:
        UserError: on every rank, naming the first thing that differs and the ranks that differ.
    """
    # A digest of each set first: the names of a large model's parameters, from a thousand ranks, are
    # hundreds of megabytes.
    digests = {_digest(sorted(things)): _digest(sorted(things.items())) for things in sets}
    by_rank = _gather(digests)
    if _first_difference(by_rank) is None:
        return
    by_rank = _gather({thing: value for things in sets for thing, value in things.items()})
    difference = _first_difference(by_rank)
    assert difference is not None, "the sets' digests differ, so do some of their things"
    raise _error(*difference, by_rank)


def _digest(things: object) -> str:
    return hashlib.sha256(repr(things).encode()).hexdigest()


def _gather(fingerprints: Fingerprints) -> list[Fingerprints]:
    """The fingerprints of every rank. All ranks get all of them, so all come to the same result."""
    by_rank: list[Fingerprints] = [{}] * dist.get_world_size()
    dist.all_gather_object(by_rank, dict(fingerprints))
    return by_rank


def _first_difference(by_rank: Sequence[Fingerprints]) -> tuple[str, int] | None:
    """A thing that is not the same on all ranks that name it, and the first rank that names it."""
    first_ranks: dict[str, int] = {}
    for rank, mapping in enumerate(by_rank):
        for thing, value in mapping.items():
            first = first_ranks.setdefault(thing, rank)
            if value != by_rank[first][thing]:
                return thing, first
    return None


def _error(thing: str, first: int, by_rank: Sequence[Fingerprints]) -> UserError:
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


def parameter_fingerprints(model: nn.Module) -> list[Fingerprints]:
    """Fingerprints of this rank's parameters, in sets for `check_identical`."""
    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    sets: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, parameter in model.named_parameters():
        thing, kind = f"parameter {name}", "whole"
        # Each tensor-parallel rank has its own part of a split parameter. Only ranks with the same
        # part, which are data-parallel ones, must agree.
        if partition_dim(parameter) is not None:
            thing, kind = f"{thing}, part {tensor_rank}", "split"
        # Stages of a pipeline have a table in common, and nothing else.
        if name.startswith(TABLES):
            kind = name
        sets[kind][thing] = _fingerprint(parameter)
    return list(sets.values())


def _fingerprint(parameter: nn.Parameter) -> str:
    # As bytes: numpy has no bfloat16.
    content = parameter.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(content.flatten().numpy().data).hexdigest()
