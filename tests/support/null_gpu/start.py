"""What a rank of a large job opens and gathers until its first step is done."""

from __future__ import annotations

from collections import Counter
from typing import Any

from janus_pt.config.reader import to_json
from janus_pt.parallel.assemble import assemble
from janus_pt.train.preflight import check_same_start
from janus_pt.train.step import train_step
from tests.support.null_gpu import counters, lone_rank, training
from tests.support.null_gpu.cases import LENGTH, build_config


def start(rank: int, ranks: int, case: dict[str, Any]) -> dict[str, Any]:
    """Rank `rank` of `ranks`: its communicators, and the bytes that reach it before the first step."""
    groups_made = lone_rank.become(rank, ranks)
    config = build_config(**case)
    parallel = config.parallel
    training.groups.initialize(
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
        before_division=lambda: check_same_start(to_json(config)),
    )
    engine = assemble(config)
    gathered = sum(
        each.bytes * each.ranks for each in counters.transfers() if each.kind == "all_gather"
    )
    train_step(engine, training.step_batches(config, engine, LENGTH), 1, 1)
    calls = Counter(each.kind for each in counters.transfers())
    return {
        "communicators": calls["init"],
        "splits": calls["split"] + calls["split, not a member"],
        "gathered bytes": gathered,
        "groups": dict(groups_made),
    }
