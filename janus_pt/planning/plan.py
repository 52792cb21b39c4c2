"""`--dry-run`: the plan of a run by formula, without data, processes or memory for the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from janus_pt.config.schema import Config, ModelConfig
from janus_pt.data.corpus import BOUNDARIES
from janus_pt.data.manifest import FILE_NAME, read_manifest
from janus_pt.model.cost import Workload
from janus_pt.objectives.expected_sizes import SampleSizes, longest_target, sample_sizes, samples_of
from janus_pt.parallel.parameter_groups import trained_parameters, trained_share, trains_all
from janus_pt.parallel.parameters import model_parameters
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.flops import CONTENT_READ, flops_per_step
from janus_pt.planning.memory import StageMemory, stage_memory
from janus_pt.planning.traffic import Traffic, step_traffic

MIB, GIB = 2**20, 2**30
MB, GB = 1e6, 1e9


def print_plan(config: Config, world_size: int, on_cpu: bool = False) -> None:
    """Print the plan for `world_size` processes: rows of what and how much, then the memory of each stage's ranks."""
    sizes = sample_sizes(config.model, config.objective, sample_length(config))
    ranks = world_size // config.parallel.model_parallel_size
    for what, amount in plan(config, world_size, sizes):
        print(f"{what:<24}{amount}")
    samples = samples_of(config.data.micro_batch_size, config.data.batch_unit, sizes.target)
    device = "a CPU process" if on_cpu else "a GPU"
    batch = MicroBatch(config.objective.draws * samples, sizes, on_cpu)
    print(f"\nmemory of {device}, by stage:")
    for line in memory_table(config.model, stage_memory(config, ranks, batch)):
        print(line)
    traffic = step_traffic(config, ranks, batch)
    if any(traffic):
        print(f"\nsent by {device} in a step, by stage:")
        for line in traffic_table(traffic):
            print(line)


def runs_on_cpu() -> bool:
    """Whether a run on this machine would be on its CPU."""
    return os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()


def sample_length(config: Config) -> int:
    """Tokens of a sample, bos and eos counted: the longest of the corpora that are at hand, else the most allowed."""
    allowed = longest_target(config.data, config.model.max_positions)
    here = [
        corpus.path for corpus in config.data.train if (Path(corpus.path) / FILE_NAME).is_file()
    ]
    longest = max((read_manifest(path).max_tokens + BOUNDARIES for path in here), default=allowed)
    return min(allowed, longest)


def plan(config: Config, world_size: int, sizes: SampleSizes) -> Iterator[tuple[str, str]]:
    """Rows of the plan: what, and how much."""
    data, parallel, run = config.data, config.parallel, config.run
    ranks = world_size // parallel.model_parallel_size
    micro_batches = config.micro_batches_per_step // ranks
    samples = samples_of(data.global_batch_size, data.batch_unit, sizes.target)
    flops = step_flops(config.model, config.objective.draws * samples, sizes)
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    yield (
        "layout",
        f"{world_size} processes = {tensor} tensor x {pipeline} pipeline x {ranks} data parallel",
    )
    yield "state", f"ZeRO-{parallel.zero_stage}, {config.precision.dtype}"
    yield "parameters", f"{model_parameters(config.model):,}"
    if not trains_all(config.optimizer, config.adapter):
        trained = trained_parameters(config.model, config.optimizer, config.adapter)
        share = trained_share(config.model, config.optimizer, config.adapter)
        yield "trained parameters", f"{trained:,}, {100 * share:.2f} % of all"
    yield (
        "a step",
        f"{data.global_batch_size:,} {data.batch_unit}, each sample as long as its micro-batch's longest",
    )
    yield "samples", f"of up to {sizes.target:,} tokens: {samples:,.0f} a step"
    yield "target tokens a step", f"{samples * sizes.target:,.0f}"
    yield (
        "a micro-batch",
        f"{data.micro_batch_size:,} {data.batch_unit}; {sizes.slots:,.0f} decoder slots a sample",
    )
    yield "gradient accumulation", f"{micro_batches} micro-batches a rank"
    if pipeline > 1:
        yield "pipeline bubble", f"{100 * bubble(pipeline, micro_batches):.1f} % of a step"
    yield "FLOPs a step", f"{flops:.3g}"
    yield (
        "the run",
        f"{run.max_steps:,} steps, {run.max_steps * data.global_batch_size:,} {data.batch_unit}, "
        f"{flops * run.max_steps:.3g} FLOPs",
    )


def bubble(stages: int, micro_batches: int) -> float:
    """Share of a step in which a stage of the one-forward-one-backward schedule waits (Narayanan et al. 2021)."""
    return (stages - 1) / (micro_batches + stages - 1)


def step_flops(model: ModelConfig, samples: float, sizes: SampleSizes) -> float:
    """Operations of a step of `samples` alike, as MFU counts them."""
    work = Workload(
        source_tokens=samples * sizes.source,
        content_slots=samples * sizes.content,
        query_slots=samples * sizes.queries,
        predicted_slots=samples * sizes.predicted,
        source_length=sizes.source,
        content_length=CONTENT_READ * sizes.content,
    )
    return flops_per_step(model, work)


def memory_table(model: ModelConfig, stages: Sequence[StageMemory]) -> Iterator[str]:
    """The memory of a rank of each stage, a line each, in GiB or, if it is little, in MiB."""
    unit, name = (GIB, "GiB") if max(stage.peak for stage in stages) > GIB else (MIB, "MiB")
    columns = ["weights", "gradients", "optimizer", "activations", "losses", "peak"]
    columns += ["host"] * any(stage.host for stage in stages)
    yield (
        f"  {'':<5}{'parameters':>14}"
        + "".join(f"{column:>13}" for column in columns)
        + f"  {name}; layers"
    )
    for number, stage in enumerate(stages):
        amounts = "".join(f"{getattr(stage, column) / unit:>13,.2f}" for column in columns)
        yield f"  {number:<5}{stage.parameters:>14,}{amounts}  {describe(model, stage.layers)}"


def traffic_table(stages: Sequence[Sequence[Traffic]]) -> Iterator[str]:
    """What a rank of each stage sends in a step, a line each, by axis and purpose, in GB or, if it is little, in MB."""
    sent = [
        {f"{traffic.axis} {traffic.what}": traffic.sent for traffic in stage} for stage in stages
    ]
    columns = list(dict.fromkeys(column for stage in sent for column in stage))
    unit, name = (
        (GB, "GB")
        if max(amount for stage in sent for amount in stage.values()) > GB
        else (MB, "MB")
    )
    yield f"  {'':<5}" + "".join(f"{column:>17}" for column in columns) + f"  {name}"
    for number, stage in enumerate(sent):
        yield f"  {number:<5}" + "".join(
            f"{stage.get(column, 0) / unit:>17,.3f}" for column in columns
        )


def describe(model: ModelConfig, layers: range) -> str:
    """What a stage holds of the chain of `parallel/stages.py`, in words."""
    slots = model.encoder_layers + 1
    head = slots + model.decoder_layers + 1
    parts = ["source embedding"] * (0 in layers)
    for name, first, last in (("encoder", 1, slots - 1), ("decoder", slots + 1, head - 1)):
        if name == "decoder" and slots in layers:
            parts.append("slot embedding")
        held = [layer - first + 1 for layer in layers if first <= layer <= last]
        if held:
            parts.append(f"{name} {held[0]}" + (f"-{held[-1]}" if len(held) > 1 else ""))
    return ", ".join(parts + ["head"] * (head in layers))
