"""Peaks of torch's CUDA allocator in steps of the shipped configurations, against the plan's formula.

    python -m tests.support.null_gpu.memory [WORDS OF A ROW'S NAME]

prints the rows of docs/reference/memory.md's table for GPUs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from janus_pt.checks import read_config
from janus_pt.config.schema import Config
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.memory import StageMemory, stage_memory
from tests.support.null_gpu.environment import ROOT
from tests.support.null_gpu.processes import call

GIB = 2**30
ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""As the launchers' examples set it."""
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class Row:
    """A configuration, and which rank of how many to measure; samples have `length` tokens."""

    config: str
    ranks: int
    rank: int = 0
    length: int = 512
    overrides: tuple[str, ...] = ()

    def read(self) -> Config:
        """The configuration."""
        return read_config(CONFIGS / f"{self.config}.json", self.overrides, self.ranks)

    @property
    def stage(self) -> int:
        """The rank's stage: stages are blocks of ranks."""
        return self.rank * self.read().parallel.pipeline_parallel_size // self.ranks

    def estimate(self) -> StageMemory:
        """By formula."""
        config = self.read()
        size = config.data.micro_batch_size
        samples = size / self.length if config.data.batch_unit == "tokens" else size
        sizes = sample_sizes(config.model, config.objective, self.length)
        data_parallel = self.ranks // config.parallel.model_parallel_size
        batch = MicroBatch(config.objective.draws * samples, sizes, on_cpu=False)
        return stage_memory(config, data_parallel, batch)[self.stage]


def _samples(count: int, micro_batches: int, *more: str) -> tuple[str, ...]:
    """Micro-batches of `count` samples, so many in a step of all data-parallel ranks."""
    return (
        "data.batch_unit=sequences",
        f"data.micro_batch_size={count}",
        f"data.global_batch_size={count * micro_batches}",
        *more,
    )


NO_DROPOUT = "model.attention_dropout=0.0"
ROWS = {
    "base, DP64, 2 samples": Row("janus_base", 64, 3, overrides=_samples(2, 192, NO_DROPOUT)),
    "base, DP16, 24 samples, dense": Row(
        "janus_base", 16, 3, overrides=_samples(24, 16, "model.attention_dropout=0.1")
    ),
    "base, float32, DP2, 8 samples, dense": Row(
        "janus_base",
        2,
        overrides=_samples(8, 4, "model.attention_dropout=0.1", "precision.dtype=float32"),
    ),
    "base, TP2 x DP32, 2 samples": Row(
        "janus_base",
        64,
        2,
        overrides=_samples(2, 96, NO_DROPOUT, "parallel.tensor_parallel_size=2"),
    ),
    "large, DP1024, 2 samples": Row("janus_large", 1024, 5, overrides=_samples(2, 1024)),
    "large, DP32, 12 samples": Row("janus_large", 32, 3, overrides=_samples(12, 32)),
    "large, ZeRO-2, DP64, 2 samples": Row(
        "janus_large", 64, 3, overrides=_samples(2, 192, "parallel.zero_stage=2")
    ),
    # Rank 0: at the start the others ask it for its list of parameters.
    "large, ZeRO-3, DP64, 2 samples": Row(
        "janus_large", 64, 0, overrides=_samples(2, 192, "parallel.zero_stage=3")
    ),
    "xl, DP64, 2 samples": Row(
        "janus_xl",
        64,
        3,
        overrides=_samples(
            2, 192, "parallel.tensor_parallel_size=1", "parallel.pipeline_parallel_size=1"
        ),
    ),
    "xl, TP4 x PP4 x DP4, stage 0": Row("janus_xl", 64, 5),
    "xl, TP4 x PP4 x DP4, stage 1": Row("janus_xl", 64, 21),
    "xl, TP4 x PP4 x DP4, stage 3": Row("janus_xl", 64, 53),
}


def measure(row: Row) -> tuple[int, int]:
    """Bytes allocated and reserved at the peak of the third step, in this process."""
    from janus_pt.parallel import assemble
    from tests.support.null_gpu import lone_rank, training

    lone_rank.become(row.rank, row.ranks)
    # Weights take no memory of the host as long as nobody reads or writes them.
    assemble.initialize_weights = lambda *_: None
    assemble.parameter_fingerprints = lambda *_: []
    config = row.read()
    engine = training.start(config)
    cost = training.measure(engine, training.step_batches(config, engine, row.length))
    return cost.peak_bytes, cost.reserved_bytes


def measured(name: str) -> tuple[int, int]:
    """`measure` in a process of its own, in which nothing of another engine is left."""
    allocated, reserved = call("tests.support.null_gpu.memory:measure_row", name, **ALLOCATOR)
    return allocated, reserved


def measure_row(name: str) -> tuple[int, int]:
    """`measure` by name."""
    return measure(ROWS[name])


if __name__ == "__main__":
    print("| configuration | formula | allocated | difference | reserved |\n|---|---|---|---|---|")
    for name in ROWS:
        if not all(word in name for word in sys.argv[1:]):
            continue
        formula = ROWS[name].estimate().peak
        allocated, reserved = measured(name)
        amounts = f"{formula / GIB:.2f} | {allocated / GIB:.2f}"
        difference = 100 * (formula / allocated - 1)
        print(f"| {name} | {amounts} | {difference:+.1f} % | {reserved / GIB:.2f} |", flush=True)
