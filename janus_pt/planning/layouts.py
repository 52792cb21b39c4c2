"""The layouts of a configuration on a cluster, the fastest first, by formula.

Nothing is measured. Memory comes from `planning/memory.py`, bytes from `planning/traffic.py`; the speeds of a GPU
and its links are assumed (`Cluster`). On the device nothing is taken to overlap. A step of M micro-batches a rank in S
stages takes it

    (M + S - 1) · the slowest stage's micro-batch  +  the exchange of gradients and weights

with computing, tensor-parallel reductions and hand-over in a micro-batch. The host launches all of that meanwhile
(`planning/launches.py`), which takes it the same sum of its own times. The step is the longer of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from janus_pt.config.schema import Config
from janus_pt.model.recompute import LAYER
from janus_pt.objectives.expected_sizes import SampleSizes
from janus_pt.parallel.stages import layer_costs, pipeline_layers, relative_costs
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.launches import host_seconds
from janus_pt.planning.memory import stage_memory
from janus_pt.planning.plan import GIB, step_flops
from janus_pt.planning.traffic import Traffic, step_traffic
from janus_pt.utils.errors import UserError
from janus_pt.utils.tables import format_table

TENSOR_SIZES = (1, 2, 4, 8)
PIPELINE_SIZES = (1, 2, 4, 8, 16)
ZERO_STAGES = (1, 2, 3)
MICRO_BATCH_SAMPLES = (1, 2, 4, 8, 16, 32, 64)
ReadConfig = Callable[[Sequence[str], int | None], Config]
"""(`KEY=VALUE` changes, number of processes) -> the configuration; `UserError` if it is not allowed."""


@dataclass(frozen=True)
class Cluster:
    """Hosts of `per_host` GPUs.

    Links in bytes a second and direction of a GPU, as they are reached, not as they are sold: 70 % of
    NVLink's 450 GB/s, 80 % of InfiniBand's 400 Gbit/s. H100 SXM: 989 TFLOP/s dense in bfloat16, of
    which half is assumed; of 80 GB, 10 GiB are left to CUDA, NCCL and the allocator.
    """

    per_host: int = 8
    peak_flops: float = 989e12
    flops: float = 0.5 * peak_flops
    inside: float = 0.7 * 450e9
    outside: float = 0.8 * 50e9
    latency_s: float = 20e-6
    memory: float = 80e9 - 10 * GIB

    def bandwidth(self, ranks: int, stride: int) -> float:
        """Bytes a second that each rank of a ring of `ranks`, every `stride` ranks, can send.

        Between hosts a ring uses the network cards of all its GPUs on a host.
        """
        if ranks * stride <= self.per_host:
            return self.inside
        cards = max(1, self.per_host // stride)
        # The ring passes through the hosts as well: it is as fast as its slowest link.
        return min(self.inside, cards * self.outside)

    def seconds(self, traffic: Traffic, stride: int) -> float:
        """Seconds of a step that `traffic` takes."""
        return traffic.sent / self.bandwidth(traffic.ranks, stride) + traffic.calls * self.latency_s


@dataclass(frozen=True)
class Step:
    """A layout and its step: bytes at a GPU's peak, and seconds, as a whole and in parts.

    `launching_s` is what the host takes longer than the device.
    """

    tensor: int
    pipeline: int
    data: int
    zero: int
    samples: int
    micro_batches: int
    recompute: bool
    graphs: bool
    memory: float
    step_s: float
    compute_s: float
    waiting_s: float
    tensor_s: float
    pipeline_s: float
    data_s: float
    launching_s: float
    host_s: float
    mfu: float


@dataclass
class StageSeconds:
    """Seconds of one stage in a step: computing, exchange by axis, and what its host launches."""

    compute: float
    tensor: float = 0.0
    pipeline: float = 0.0
    data: float = 0.0
    host_micro_batches: float = 0.0
    host_once: float = 0.0

    @property
    def micro_batches(self) -> float:
        """All that is part of the micro-batches."""
        return self.compute + self.tensor + self.pipeline


def steps(read_config: ReadConfig, world_size: int, sizes: SampleSizes) -> Iterator[Step]:
    """Every layout that the configuration allows and that fits into memory."""
    unit = read_config([], None).data.batch_unit
    for tensor, pipeline, zero, samples, recompute, graphs in product(
        TENSOR_SIZES, PIPELINE_SIZES, ZERO_STAGES, MICRO_BATCH_SAMPLES, (False, True), (False, True)
    ):
        data_parallel, rest = divmod(world_size, tensor * pipeline)
        if rest or not data_parallel:
            continue
        micro_batch = samples * sizes.target if unit == "tokens" else samples
        layout = [
            f"parallel.tensor_parallel_size={tensor}",
            f"parallel.pipeline_parallel_size={pipeline}",
            f"parallel.zero_stage={zero}",
            f"parallel.activation_checkpointing={str(recompute).lower()}",
            f"data.micro_batch_size={micro_batch}",
            f"run.cuda_graphs={str(graphs).lower()}",
        ]
        try:
            config = read_config(layout, world_size)
        except UserError:
            # The limits of the configuration say which layouts there are.
            continue
        batch = MicroBatch(samples, sizes, on_cpu=False)
        step = estimate(config, data_parallel, batch, Cluster())
        if step.memory <= Cluster.memory:
            yield step


def fastest(steps: Iterable[Step]) -> list[Step]:
    """The best micro-batch for every layout and stage of ZeRO, with graphs or without.

    Of two as fast it is the one with larger micro-batches, and the one without graphs.
    """
    best: dict[tuple[int, int, int], Step] = {}
    for step in sorted(steps, key=lambda s: (s.step_s, -s.samples, s.graphs)):
        # The first is the fastest; later ones do not replace it.
        best.setdefault((step.tensor, step.pipeline, step.zero), step)
    return list(best.values())


def estimate(config: Config, data_parallel: int, batch: MicroBatch, cluster: Cluster) -> Step:
    """The step of one layout."""
    parallel = config.parallel
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    count = config.data.micro_batches_per_step // data_parallel
    flops = step_flops(config.model, batch.samples, batch.sizes)
    stages = stage_seconds(config, data_parallel, batch, cluster, flops)

    # The schedule goes at the pace of the slowest stage; its ends are the pipeline's bubble.
    slowest = max(stages, key=lambda stage: stage.micro_batches)
    turns = count + pipeline - 1
    exchange = max(stage.data for stage in stages)
    device_s = turns * slowest.micro_batches / count + exchange
    host_s = turns * max(stage.host_micro_batches for stage in stages) / count
    host_s += max(stage.host_once for stage in stages)
    step_s = max(device_s, host_s)
    compute_s = sum(stage.compute for stage in stages) / pipeline
    waiting_s = device_s - exchange - compute_s - slowest.tensor - slowest.pipeline

    devices = data_parallel * tensor * pipeline
    # MFU counts needed operations, not recomputed ones.
    mfu = flops * count * data_parallel / (devices * cluster.peak_flops * step_s)
    memory = max(
        # A micro-batch of a size that has no graphs yet is computed beside their memory.
        stage.peak + (stage.activations if config.run.cuda_graphs else 0.0)
        for stage in stage_memory(config, data_parallel, batch)
    )
    return Step(
        tensor=tensor,
        pipeline=pipeline,
        data=data_parallel,
        zero=parallel.zero_stage,
        samples=round(batch.samples),
        micro_batches=count,
        recompute=parallel.activation_checkpointing != "none",
        graphs=config.run.cuda_graphs,
        memory=memory,
        step_s=step_s,
        compute_s=compute_s,
        # Rounding may leave less than nothing where no stage waits.
        waiting_s=max(0.0, waiting_s),
        tensor_s=slowest.tensor,
        pipeline_s=slowest.pipeline,
        data_s=exchange,
        launching_s=step_s - device_s,
        host_s=host_s,
        mfu=mfu,
    )


def stage_seconds(
    config: Config, data_parallel: int, batch: MicroBatch, cluster: Cluster, flops: float
) -> list[StageSeconds]:
    """The seconds of each stage in a step; a micro-batch has `flops` operations in all stages together."""
    parallel = config.parallel
    tensor = parallel.tensor_parallel_size
    count = config.data.micro_batches_per_step // data_parallel
    costs = relative_costs(config.model)
    # Recomputing is a second forward pass, a third of the three that forward and backward are.
    passes = 1 + recomputed_share(config, batch) / 3
    # Ranks of the tensor axis are neighbours, stages the farthest apart (`parallel/groups.py`).
    stride = {"tensor": 1, "data": tensor, "pipeline": tensor * data_parallel}

    stages = []
    layers_by_stage = pipeline_layers(config.model, parallel.pipeline_parallel_size)
    traffic_by_stage = step_traffic(config, data_parallel, batch)
    for layers, traffic in zip(layers_by_stage, traffic_by_stage, strict=True):
        share = sum(costs[layer] for layer in layers) / sum(costs)
        seconds = StageSeconds(compute=count * passes * share * flops / tensor / cluster.flops)
        for each in traffic:
            exchange = cluster.seconds(each, stride[each.axis])
            if each.axis == "tensor":
                seconds.tensor += exchange
            elif each.axis == "pipeline" and each.what == "states":
                seconds.pipeline += exchange
            else:
                # Gradients, weights and the shared table: once a step, behind the micro-batches.
                seconds.data += exchange
        seconds.host_micro_batches, seconds.host_once = host_seconds(
            config, batch, layers, traffic, count
        )
        stages.append(seconds)
    return stages


def recomputed_share(config: Config, batch: MicroBatch) -> float:
    """Share of the forward pass that is computed again in the backward pass."""
    part = config.parallel.activation_checkpointing
    if part == LAYER:
        return 1.0
    costs = layer_costs(config.model, batch.work)
    again = 0.0
    for cost in costs:
        again += sum(sublayer.multiply_adds for sublayer in cost.sublayers if sublayer.kind == part)
    return again / sum(cost.multiply_adds for cost in costs)


def table(steps: Sequence[Step]) -> str:
    """The layouts as Markdown: shares of the step by purpose, and MFU."""
    headers = ["layout", "ZeRO", "micro-batches", "memory, GiB", "step, s"]
    headers += ["computing", "waiting", "tensor", "pipeline", "data", "launching", "MFU"]
    rows = []
    for step in steps:
        layout = f"TP{step.tensor} x PP{step.pipeline} x DP{step.data}"
        if step.recompute:
            layout += ", recomputing"
        if step.graphs:
            layout += ", graphs"
        parts = (
            step.compute_s,
            step.waiting_s,
            step.tensor_s,
            step.pipeline_s,
            step.data_s,
            step.launching_s,
        )
        rows.append(
            [
                layout,
                str(step.zero),
                f"{step.micro_batches} of {step.samples}",
                f"{step.memory / GIB:.1f}",
                f"{step.step_s:.3f}",
                *(f"{100 * part / step.step_s:.0f} %" for part in parts),
                f"{100 * step.mfu:.0f} %",
            ]
        )
    return format_table(rows, headers, markdown=True)
