"""The layouts of a configuration on a cluster, the fastest first, by formula.

Nothing is measured. Memory is that of `train/memory.py`, bytes those of `train/communication.py`; how fast a GPU and
its links are is assumed (`Cluster`). Nothing is taken to overlap. A step of M micro-batches a rank in S stages then is

    (M + S - 1) · the slowest stage's micro-batch  +  the exchange of gradients and weights

with computing, tensor-parallel reductions and hand-over in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from janus_pt.config.schema import Config
from janus_pt.objectives.expected_sizes import SampleSizes
from janus_pt.parallel.stages import layer_costs, stage_bounds
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.memory import stage_memory
from janus_pt.planning.plan import GIB, step_flops
from janus_pt.planning.traffic import Traffic, step_traffic
from janus_pt.utils.errors import UserError

TENSOR, PIPELINE, ZERO, SAMPLES = (
    (1, 2, 4, 8),
    (1, 2, 4, 8, 16),
    (1, 2, 3),
    (1, 2, 4, 8, 16, 32, 64),
)
"""What is tried: sizes of the axes, stages of ZeRO, samples a micro-batch."""
IN_STEPS = {"data": False, "tensor": True, "pipeline": True}
"""Whether an axis' exchange is part of every micro-batch."""
ReadConfig = Callable[[Sequence[str], int | None], Config]
"""(`KEY=VALUE` changes, number of processes) -> the configuration; `UserError` if it is not allowed."""


@dataclass(frozen=True)
class Cluster:
    """Hosts of `per_host` GPUs. Links in bytes a second and direction of a GPU, as they are reached, not as they are
    sold: 70 % of NVLink's 450 GB/s, 80 % of InfiniBand's 400 Gbit/s. H100 SXM: 989 TFLOP/s dense in bfloat16, of
    which half is assumed; of 80 GB, 10 GiB are left to CUDA, NCCL and the allocator."""

    per_host: int = 8
    peak_flops: float = 989e12
    flops: float = 0.5 * peak_flops
    inside: float = 0.7 * 450e9
    outside: float = 0.8 * 50e9
    latency_s: float = 20e-6
    memory: float = 80e9 - 10 * GIB

    def bandwidth(self, ranks: int, stride: int) -> float:
        """What a ring of `ranks` every `stride` ranks gives each: between hosts, the network cards of all its GPUs
        on a host; other rings use those of theirs."""
        if ranks * stride <= self.per_host:
            return self.inside
        return min(self.inside, max(1, self.per_host // stride) * self.outside)

    def seconds(self, traffic: Traffic, stride: int) -> float:
        """Of a step's exchange."""
        return traffic.sent / self.bandwidth(traffic.ranks, stride) + traffic.calls * self.latency_s


@dataclass(frozen=True)
class Step:
    """A layout and what its step comes to: seconds, of which parts; bytes at a GPU's peak."""

    tensor: int
    pipeline: int
    data: int
    zero: int
    samples: int
    micro_batches: int
    recompute: bool
    memory: float
    step_s: float
    compute_s: float
    waiting_s: float
    tensor_s: float
    pipeline_s: float
    data_s: float
    mfu: float


def steps(read_config: ReadConfig, world_size: int, sizes: SampleSizes) -> Iterator[Step]:
    """Every layout that the configuration allows and that fits into memory."""
    unit = read_config([], None).data.batch_unit
    for tensor, pipeline, zero, samples, recompute in product(
        TENSOR, PIPELINE, ZERO, SAMPLES, (False, True)
    ):
        data, rest = divmod(world_size, tensor * pipeline)
        if rest or not data:
            continue
        layout = {
            "parallel.tensor_parallel_size": tensor, "parallel.pipeline_parallel_size": pipeline,
            "parallel.zero_stage": zero, "parallel.activation_checkpointing": str(recompute).lower(),
            "data.micro_batch_size": samples * (sizes.target if unit == "tokens" else 1),
        }  # fmt: skip
        try:
            config = read_config([f"{key}={value}" for key, value in layout.items()], world_size)
        except UserError:
            continue
        step = estimate(config, data, MicroBatch(samples, sizes, on_cpu=False), Cluster())
        if step.memory <= Cluster.memory:
            yield step


def fastest(steps: Iterable[Step]) -> list[Step]:
    """The best micro-batch for every layout and stage of ZeRO; of two as fast the one with larger micro-batches."""
    best: dict[tuple[int, int, int], Step] = {}
    for step in sorted(steps, key=lambda s: (s.step_s, -s.samples)):
        best.setdefault((step.tensor, step.pipeline, step.zero), step)
    return list(best.values())


def estimate(config: Config, data: int, batch: MicroBatch, cluster: Cluster) -> Step:
    """The step of one layout."""
    parallel, model = config.parallel, config.model
    tensor, stages = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    count = config.micro_batches_per_step // data
    flops = step_flops(model, batch.samples, batch.sizes)
    costs, bounds = layer_costs(model), stage_bounds(model, stages)
    redone = 1 + parallel.activation_checkpointing / 3
    shares = [redone * sum(costs[start:stop]) / sum(costs) for start, stop in pairwise(bounds)]
    stride = {"tensor": 1, "data": tensor, "pipeline": tensor * data}
    traffic = step_traffic(config, data, batch)
    axes = [{axis: 0.0 for axis in IN_STEPS} for _ in range(stages)]
    for stage, exchanged in zip(axes, traffic, strict=True):
        for each in exchanged:
            within = IN_STEPS[each.axis] and each.what != "table"
            stage[each.axis if within else "data"] += cluster.seconds(each, stride[each.axis])
    computing = [share * flops / tensor / cluster.flops for share in shares]
    turns = [
        c + (a["tensor"] + a["pipeline"]) / count for c, a in zip(computing, axes, strict=True)
    ]
    slowest = max(range(stages), key=turns.__getitem__)
    exchange = max(stage["data"] for stage in axes)
    whole = (count + stages - 1) * turns[slowest] + exchange
    inside = {axis: axes[slowest][axis] for axis in ("tensor", "pipeline")}
    mean = count * sum(computing) / stages
    return Step(
        tensor, stages, data, parallel.zero_stage, round(batch.samples), count, parallel.activation_checkpointing,
        max(stage.peak for stage in stage_memory(config, data, batch)), whole, mean,
        max(0.0, whole - exchange - mean - sum(inside.values())), inside["tensor"], inside["pipeline"], exchange,
        flops * count * data / (data * tensor * stages * cluster.peak_flops * whole),
    )  # fmt: skip


def table(steps: Sequence[Step]) -> Iterator[str]:
    """For people, as Markdown: what of the step is spent how, and MFU."""
    columns = ["layout", "ZeRO", "micro-batches", "memory, GiB", "step, s"]
    columns += ["computing", "waiting", "tensor", "pipeline", "data", "MFU"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for s in steps:
        layout = f"TP{s.tensor} x PP{s.pipeline} x DP{s.data}" + ", recomputing" * s.recompute
        cells = [
            layout,
            str(s.zero),
            f"{s.micro_batches} of {s.samples}",
            f"{s.memory / GIB:.1f}",
            f"{s.step_s:.3f}",
        ]
        parts = (s.compute_s, s.waiting_s, s.tensor_s, s.pipeline_s, s.data_s)
        cells += [f"{100 * part / s.step_s:.0f} %" for part in parts] + [f"{100 * s.mfu:.0f} %"]
        yield f"| {' | '.join(cells)} |"
