"""What a training step exchanges between its ranks, counted: every collective and message that torch is asked for.

All of them, whoever asks (megatron-core, DeepSpeed or ours), pass torch's dispatcher as operators of `c10d`. Counts
and norms, of a few elements each, are left out, as is all within a group of one rank.

    python -m tests.support.measured_traffic        prints docs/results/scaling.md's comparison
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from janus_pt.config.schema import Config
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.expected_sizes import SampleSizes
from janus_pt.packing.batch import Batch
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.traffic import Traffic, step_traffic
from tests.support.measured_memory import build_config
from tests.support.ranks import run_ranks

Volumes = dict[tuple[str, str], float]
"""Bytes by axis and kind."""
KINDS = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_": "reduce",
    "send": "send",
}
FEW = 20
"""Elements of the longest vector of counts."""
SMALL = dict(vocab=300, hidden=32, layers=2, samples=32, length=8, accumulate=2)
RELEASED = {"stage3_param_persistence_threshold": 0}
"""ZeRO-3 keeps parameters this small gathered for good."""
FETCHED_TWICE = {**RELEASED, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
CASES: dict[str, dict[str, Any]] = {
    "DP2, ZeRO-0": {"ranks": 2, "zero": 0},
    "DP2, ZeRO-1": {"ranks": 2},
    "DP2, ZeRO-2": {"ranks": 2, "zero": 2},
    "DP2, ZeRO-3": {"ranks": 2, "zero": 3, "settings": RELEASED},
    "DP2, ZeRO-3, nothing kept": {"ranks": 2, "zero": 3, "settings": FETCHED_TWICE},
    "DP2, ZeRO-0, bfloat16": {"ranks": 2, "zero": 0, "dtype": "bfloat16"},
    "DP2, ZeRO-1, bfloat16": {"ranks": 2, "dtype": "bfloat16"},
    "DP2, ZeRO-1, reduced in bfloat16": {"ranks": 2, "dtype": "bfloat16", "reduce": "bfloat16"},
    "DP2, ZeRO-2, bfloat16": {"ranks": 2, "zero": 2, "dtype": "bfloat16"},
    "DP2, ZeRO-3, bfloat16": {"ranks": 2, "zero": 3, "dtype": "bfloat16", "settings": RELEASED},
    "TP2": {"tensor": 2},
    "TP2, bfloat16": {"tensor": 2, "dtype": "bfloat16"},
    "TP2, activation checkpointing": {"tensor": 2, "checkpointing": "all"},
    "TP2, attention recomputed": {"tensor": 2, "checkpointing": "attention"},
    "TP2, feed-forward recomputed": {"tensor": 2, "checkpointing": "feed_forward"},
    "TP2, sequence parallel": {"tensor": 2, "sequence": True},
    "TP2, sequence parallel, all recomputed": {
        "tensor": 2,
        "sequence": True,
        "checkpointing": "all",
    },
    "TP2, sequence parallel, attention recomputed": {
        "tensor": 2,
        "sequence": True,
        "checkpointing": "attention",
    },
    "TP2 x PP2, sequence parallel, bfloat16": {
        "tensor": 2,
        "pipeline": 2,
        "dtype": "bfloat16",
        "sequence": True,
    },
    "TP2 x DP2, ZeRO-2": {"tensor": 2, "ranks": 2, "zero": 2},
    "PP2": {"pipeline": 2},
    "PP3": {"pipeline": 3},
    "TP2 x PP2, bfloat16": {"tensor": 2, "pipeline": 2, "dtype": "bfloat16"},
    "PP2 x DP2, bfloat16": {"pipeline": 2, "ranks": 2, "dtype": "bfloat16"},
}


class Counting(TorchDispatchMode):
    """Adds up what is exchanged while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = operator.__name__.partition(".")[0]
        if operator.namespace == "c10d" and not name.startswith("recv"):
            self._count(name, args)
        return operator(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        # The first argument is what comes out of a collective, its group the first that is one.
        group = dist.ProcessGroup.unbox(next(a for a in args if isinstance(a, torch.ScriptObject)))
        tensors = args[0] if isinstance(args[0], list) else [args[0]]
        ranks = len(dist.get_process_group_ranks(group))
        if ranks == 1 or all(t.numel() < FEW for t in tensors):
            return
        times = ranks if name == "_reduce_scatter_base_" else 1
        key = (axis_of(group), KINDS[name])
        self.bytes[key] += times * sum(t.numel() * t.element_size() for t in tensors)
        self.calls[key] += 1


def axis_of(group: Any) -> str:
    """Which axis the ranks of a group are on; what goes over all ranks is between stages."""
    from megatron.core import parallel_state

    found = dist.get_process_group_ranks(group)
    for axis in ("data", "tensor_model"):
        own = getattr(parallel_state, f"get_{axis}_parallel_group")()
        if dist.get_world_size(own) > 1 and found == dist.get_process_group_ranks(own):
            return axis.partition("_")[0]
    return "pipeline"


def config_of(settings: dict[str, int] | None = None, **case: Any) -> Config:
    """A case's configuration."""
    config = build_config(**{**SMALL, **case})
    zero = {**config.deepspeed["zero_optimization"], **(settings or {})}
    return config.model_copy(update={"deepspeed": {"zero_optimization": zero}})


def batch_of(config: Config) -> Batch:
    """A micro-batch of one sample as often as parts of a row are wide, so that nothing is padding."""
    rng, length = np.random.default_rng(1), config.model.max_positions
    text = rng.integers(5, config.model.vocab_size, length - 2)
    example = make_example({"text": text}, rng, model=config.model, objective=config.objective)
    return collate_examples([example] * config.data.micro_batch_size, config.objective)


def measure(case: dict[str, Any]) -> tuple[Volumes, Volumes]:
    """What this rank gives to collectives and sends in the second step: bytes and calls."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import assemble
    from janus_pt.train.step import train_step

    # ZeRO-3 numbers modules and parameters through the life of a process, and compares the numbers between ranks.
    Init.param_id, DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0, 0
    config = config_of(**case)
    groups.initialize(config.parallel.tensor_parallel_size, config.parallel.pipeline_parallel_size)
    engine = assemble(config)
    batches = [batch_of(config)] * engine.gradient_accumulation_steps()
    train_step(engine, batches, 1, 1)
    with Counting() as counting:
        train_step(engine, batches, 2, 1)
    groups.shutdown()
    return dict(counting.bytes), dict(counting.calls)


def estimate(case: dict[str, Any]) -> list[list[Traffic]]:
    """The formula's answer for the same batch, by stage."""
    config = config_of(**case)
    batch = batch_of(config)
    samples = config.data.micro_batch_size
    source, content, slots = (
        batch.source.tokens.shape[1],
        batch.slots.num_content,
        batch.slots.table.shape[1],
    )
    masked, predicted = len(batch.predict["nar"]), sum(map(len, batch.predict.values()))
    sizes = SampleSizes(
        config.model.max_positions,
        *(n / samples for n in (source, masked, content, slots - content, predicted)),
        0,
    )
    return step_traffic(config, case.get("ranks", 1), MicroBatch(samples, sizes, on_cpu=True))


def summed(traffic: Iterable[Traffic]) -> tuple[Volumes, Volumes]:
    """Bytes and calls by axis and kind."""
    volumes: tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]] = Counter(), Counter()
    for each in traffic:
        volumes[0][each.axis, each.kind] += each.payload
        volumes[1][each.axis, each.kind] += each.calls
    return dict(volumes[0]), dict(volumes[1])


def ranks_of(case: dict[str, Any]) -> int:
    """Processes that a case takes."""
    return case.get("ranks", 1) * case.get("tensor", 1) * case.get("pipeline", 1)


def measured(case: dict[str, Any]) -> list[tuple[Volumes, Volumes]]:
    """`measure` of the first rank of every stage."""
    found = run_ranks(measure, ranks_of(case), case)
    return found[:: len(found) // case.get("pipeline", 1)]


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(CASES)
    print("| layout | exchanged | bytes, by formula | counted | calls, by formula | counted |")
    print("|---|---|---|---|---|---|")
    for name in chosen:
        stages = zip(estimate(CASES[name]), measured(CASES[name]), strict=True)
        for stage, (traffic, real) in enumerate(stages):
            payload, calls = summed(traffic)
            of_stage = f", stage {stage}" * ("pipeline" in CASES[name])
            for key in sorted(payload.keys() | real[0].keys()):
                numbers = (
                    payload.get(key, 0),
                    real[0].get(key, 0),
                    calls.get(key, 0),
                    real[1].get(key, 0),
                )
                row = " | ".join(f"{number:,.0f}" for number in numbers)
                print(f"| {name}{of_stage} | {' '.join(key)} | {row} |", flush=True)
