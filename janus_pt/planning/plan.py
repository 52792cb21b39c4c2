"""`--dry-run`: the plan of a run by formula, without data, processes or memory for the model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from janus_pt.config.schema import AUTO, Config, DataConfig, ModelConfig
from janus_pt.data.manifest import FILE_NAME, read_manifest
from janus_pt.model.cost import Workload
from janus_pt.model.layer_numbers import (
    FIRST_ENCODER_LAYER,
    SOURCE_EMBEDDING,
    first_decoder_layer,
    head_layer,
    slot_embedding,
)
from janus_pt.objectives.expected_sizes import SampleSizes, longest_target, sample_sizes, samples_of
from janus_pt.packing.example import BOUNDARY_TOKENS
from janus_pt.packing.padded import round_to_graph_step
from janus_pt.parallel.parameter_groups import trained_parameters, trained_share, trains_all
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.flops import CONTENT_READ, flops_per_step
from janus_pt.planning.memory import StageMemory, stage_memory
from janus_pt.planning.parameters import model_parameters
from janus_pt.planning.traffic import Traffic, step_traffic
from janus_pt.utils.errors import UserError
from janus_pt.utils.tables import format_table

MIB, GIB = 2**20, 2**30
MB, GB = 1e6, 1e9


def print_plan(config: Config, world_size: int, on_cpu: bool = False) -> None:
    """Print the plan for `world_size` processes: the run, then memory and traffic of each stage's ranks."""
    require_micro_batch(config.data)
    sizes = sample_sizes(
        config.model, config.objective, sample_length(config.data, config.model.longest_sample)
    )
    print(format_table(plan(config, world_size, sizes), align="ll"))

    ranks = world_size // config.parallel.model_parallel_size
    samples = samples_of(config.data.micro_batch_size, config.data.batch_unit, sizes.target)
    batch = MicroBatch(config.objective.draws * samples, sizes, on_cpu)
    device = "a CPU process" if on_cpu else "a GPU"
    print(f"\nmemory of {device}, by stage:")
    print(memory_table(config.model, stage_memory(config, ranks, batch)))

    traffic = step_traffic(config, ranks, batch)
    if any(traffic):
        print(f"\nsent by {device} in a step, by stage:")
        print(traffic_table(traffic))


def require_micro_batch(data: DataConfig) -> None:
    """Refuse "auto" where no memory is there to be filled.

    Raises:
        UserError: says how to give a number.
    """
    if data.micro_batch_size == AUTO:
        raise UserError(
            'data.micro_batch_size is "auto", which the start of a training decides: give a number, '
            "as --set data.micro_batch_size=8192"
        )


def runs_on_cpu() -> bool:
    """Whether a run on this machine would be on its CPU."""
    return os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()


def sample_length(data: DataConfig, max_positions: int) -> int:
    """Tokens of a sample with bos and eos: the longest of the corpora on this machine, else the most allowed."""
    allowed = longest_target(data, max_positions)
    lengths = []
    for corpus in data.train:
        # A plan may be made where the corpora are not.
        if (Path(corpus.path) / FILE_NAME).is_file():
            lengths.append(read_manifest(corpus.path).max_tokens + BOUNDARY_TOKENS)
    return min(allowed, max(lengths, default=allowed))


def plan(config: Config, world_size: int, sizes: SampleSizes) -> Iterator[tuple[str, str]]:
    """Rows of the plan: a name, and its value in words."""
    data, parallel, run = config.data, config.parallel, config.run
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    ranks = world_size // parallel.model_parallel_size
    micro_batches = config.data.micro_batches_per_step // ranks
    samples = samples_of(data.global_batch_size, data.batch_unit, sizes.target)
    # Some objectives have every sample several times in a batch.
    flops = step_flops(config.model, config.objective.draws * samples, sizes)
    step_size = f"{data.global_batch_size:,} {data.batch_unit}"
    run_size = f"{run.max_steps * data.global_batch_size:,} {data.batch_unit}"

    layout = f"{tensor} tensor x {pipeline} pipeline x {ranks} data parallel"
    if parallel.sequence_parallel:
        layout += ", sequence parallel"
    state = f"ZeRO-{parallel.zero_stage}, {config.precision.dtype}"
    if config.precision.dtype != "float32":
        state += f", gradients reduced in {parallel.gradient_reduce_dtype}"
    yield "layout", f"{world_size} processes = {layout}"
    yield "state", state
    if parallel.activation_checkpointing != "none":
        yield "recomputed", parallel.activation_checkpointing.replace("_", "-")
    yield "parameters", f"{model_parameters(config.model):,}"
    if not trains_all(config.optimizer, config.adapter):
        trained = trained_parameters(config.model, config.optimizer, config.adapter)
        share = trained_share(config.model, config.optimizer, config.adapter)
        yield "trained parameters", f"{trained:,}, {100 * share:.2f} % of all"
    yield "a step", f"{step_size}, each sample as long as its micro-batch's longest"
    yield "samples", f"of up to {sizes.target:,} tokens: {samples:,.0f} a step"
    yield "target tokens a step", f"{samples * sizes.target:,.0f}"
    micro_batch = f"{data.micro_batch_size:,} {data.batch_unit}"
    yield "a micro-batch", f"{micro_batch}; {sizes.slots:,.0f} decoder slots a sample"
    if run.cuda_graphs:
        yield "padding for CUDA graphs", f"{100 * graph_padding(config, sizes):.1f} % of the slots"
    yield "gradient accumulation", f"{micro_batches} micro-batches a rank"
    if pipeline > 1:
        waiting = 100 * bubble(pipeline, micro_batches)
        yield "pipeline bubble", f"{waiting:.1f} % of a step"
    yield "FLOPs a step", f"{flops:.3g}"
    yield "the run", f"{run.max_steps:,} steps, {run_size}, {flops * run.max_steps:.3g} FLOPs"


def graph_padding(config: Config, sizes: SampleSizes) -> float:
    """Padding of a micro-batch's rows for CUDA graphs, as a share of what is not padding.

    Of rows of mean size; those that predict among the contents are counted as other contents.
    """
    samples = samples_of(config.data.micro_batch_size, config.data.batch_unit, sizes.target)
    samples *= config.objective.draws
    lengths = [samples * length for length in (sizes.source, sizes.content, sizes.queries)]
    padded = [round_to_graph_step(math.ceil(length)) for length in lengths]
    return sum(padded) / sum(lengths) - 1


def bubble(stages: int, micro_batches: int) -> float:
    """Share of a step in which a stage of the one-forward-one-backward schedule waits (Narayanan et al. 2021)."""
    return (stages - 1) / (micro_batches + stages - 1)


def step_flops(model: ModelConfig, samples: float, sizes: SampleSizes) -> float:
    """Floating-point operations of a step of `samples` of the same sizes, as MFU counts them."""
    work = Workload(
        source_tokens=samples * sizes.source,
        content_slots=samples * sizes.content,
        query_slots=samples * sizes.queries,
        predicted_slots=samples * sizes.predicted,
        source_length=sizes.source,
        content_length=CONTENT_READ * sizes.content,
    )
    return flops_per_step(model, work)


def memory_table(model: ModelConfig, stages: Sequence[StageMemory]) -> str:
    """The memory of a rank of each stage, a line each, in GiB or, if it is little, in MiB."""
    largest = max(stage.peak for stage in stages)
    unit, unit_name = (GIB, "GiB") if largest > GIB else (MIB, "MiB")
    columns = ["weights", "gradients", "optimizer", "activations", "losses", "peak"]
    if any(stage.host for stage in stages):
        columns.append("host")
    rows = []
    for number, stage in enumerate(stages):
        amounts = [f"{getattr(stage, column) / unit:,.2f}" for column in columns]
        layers = describe_layers(model, stage.layers)
        rows.append([str(number), f"{stage.parameters:,}", *amounts, layers])
    headers = [f"stage ({unit_name})", "parameters", *columns, "layers"]
    alignment = "l" + "r" * (len(columns) + 1) + "l"
    return format_table(rows, headers, align=alignment)


def traffic_table(stages: Sequence[Sequence[Traffic]]) -> str:
    """What a rank of each stage sends in a step, a line each, by axis and purpose, in GB or, if it is little, in MB."""
    # A dict has its keys in the order of their first use, which is the axes' order.
    columns: dict[str, None] = {}
    sent_by_stage = []
    for stage in stages:
        sent: dict[str, float] = {}
        for traffic in stage:
            column = f"{traffic.axis} {traffic.what}"
            sent[column] = sent.get(column, 0.0) + traffic.sent
        sent_by_stage.append(sent)
        columns.update(dict.fromkeys(sent))
    largest = max(amount for sent in sent_by_stage for amount in sent.values())
    unit, unit_name = (GB, "GB") if largest > GB else (MB, "MB")
    rows = []
    for number, sent in enumerate(sent_by_stage):
        amounts = [f"{sent.get(column, 0.0) / unit:,.3f}" for column in columns]
        rows.append([str(number), *amounts])
    return format_table(rows, [f"stage ({unit_name})", *columns])


def describe_layers(model: ModelConfig, layers: range) -> str:
    """The layers of a stage in words: `slot embedding, decoder 1-4`."""
    parts = []
    if SOURCE_EMBEDDING in layers:
        parts.append("source embedding")
    parts += _numbered("encoder", layers, FIRST_ENCODER_LAYER, slot_embedding(model))
    if slot_embedding(model) in layers:
        parts.append("slot embedding")
    parts += _numbered("decoder", layers, first_decoder_layer(model), head_layer(model))
    if head_layer(model) in layers:
        parts.append("head")
    return ", ".join(parts)


def _numbered(stack: str, layers: range, start: int, stop: int) -> list[str]:
    """The `layers` in a stack's `[start, stop)`, counted from 1; an empty list if there is none."""
    first = max(layers.start, start) - start + 1
    last = min(layers.stop, stop) - start
    if first > last:
        return []
    return [f"{stack} {first}" if first == last else f"{stack} {first}-{last}"]
