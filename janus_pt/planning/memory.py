"""Memory of a training process by formula: what is always there, and what a micro-batch adds at its peak.

The bytes of a parameter follow from what DeepSpeed keeps. From ZeRO-1 on a rank updates a float32 copy of its share of
the weights, also where the weights are float32 already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from janus_pt.config.schema import Config
from janus_pt.parallel.deepspeed_config import zero_optimization
from janus_pt.parallel.owners import go_to_owners
from janus_pt.parallel.stages import pipeline_layers
from janus_pt.planning.activations import (
    FLOAT,
    MicroBatch,
    activation_width,
    in_flight,
    loss_bytes,
    reduce_width,
    stage_activations,
)
from janus_pt.planning.parameters import stage_parameters, trained_on_rank

ADAM = 2 * FLOAT
"""Bytes of a parameter's two moments."""
LIVE_PARAMETERS = 1_000_000_000
"""ZeRO-3 keeps up to this many gathered parameters for the backward pass (DeepSpeed's `stage3_max_live_parameters`)."""
WORKSPACES = 2 * 32 * 2**20
"""Bytes that torch gives cuBLAS for good on GPUs since Hopper: for the main thread, and for autograd's."""
ALL_REDUCE_ELEMENTS = 500_000_000
"""Most gradients that DeepSpeed copies together for one all-reduce where ZeRO does not reduce them in buckets."""


@dataclass(frozen=True)
class StateBytes:
    """What a rank keeps of its parameters, in bytes.

    `carried` is the part of `gradients` that exists before a micro-batch's backward pass, `bucket` the
    buffer that its reduction fills, `update` the copies made in the update. `host` is what offload
    keeps in the host's memory, and no part of the others.
    """

    weights: float
    optimizer: float
    gradients: float
    carried: float
    bucket: float
    update: float
    host: float


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one rank of a pipeline stage that holds `layers`, numbered as in `layer_numbers`.

    `activations` belong to all micro-batches in flight at their peak, `losses` what the head adds to them.
    `peak` is less than the sum where gradients and activations do not exist at the same time; `host` is what offload
    puts in the host's memory, and no part of it.
    """

    layers: range
    parameters: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    losses: float
    peak: float
    host: float


def stage_memory(config: Config, data_parallel: int, batch: MicroBatch) -> list[StageMemory]:
    """The memory of a rank of each pipeline stage, where `data_parallel` ranks share its state."""
    model, parallel = config.model, config.parallel
    tensor_parallel = parallel.tensor_parallel_size
    width = activation_width(config.precision)
    micro_batches = config.data.micro_batches_per_step // data_parallel
    stages = pipeline_layers(model, parallel.pipeline_parallel_size)
    counts = stage_parameters(model, tensor_parallel, stages)

    memory = []
    for stage, (layers, parameters) in enumerate(zip(stages, counts, strict=True)):
        state = state_bytes(config, parameters, data_parallel)
        flying = in_flight(len(stages), stage, micro_batches)
        held = stage_activations(model, parallel, width, batch, layers, flying)
        losses = 0.0
        if layers is stages[-1]:
            forward, backward = loss_bytes(model, tensor_parallel, width, batch)
            # The first gradients fill the bucket while the head's backward pass runs.
            losses = max(forward, backward + state.bucket)
        # A layer's backward pass comes after the losses' memory is free: only what exceeds it counts.
        activations = held.kept + max(0.0, held.working + state.bucket - losses)
        in_passes = state.carried + activations + losses
        in_update = state.gradients + state.update
        workspaces = 0.0 if batch.on_cpu else WORKSPACES
        memory.append(
            StageMemory(
                layers=layers,
                parameters=parameters,
                weights=state.weights,
                gradients=state.gradients,
                optimizer=state.optimizer,
                activations=activations,
                losses=losses,
                peak=state.weights + state.optimizer + max(in_passes, in_update) + workspaces,
                host=state.host,
            )
        )
    return memory


def state_bytes(config: Config, parameters: int, ranks: int) -> StateBytes:
    """Weights, gradients and optimizer state of `parameters` on a rank, `ranks` of which share what ZeRO shares."""
    parallel = config.parallel
    stage = parallel.zero_stage
    width = activation_width(config.precision)
    low_precision = width < FLOAT
    accumulates = config.data.micro_batches_per_step > ranks
    trained = trained_on_rank(parameters, config.model, config.optimizer, config.adapter)
    shard = trained / ranks
    weights_shard = parameters / ranks * width
    settings: Mapping[str, Any] = zero_optimization(parallel, config.deepspeed)

    weights = float(parameters * width)
    if stage == 3:
        weights = weights_shard + min(parameters, LIVE_PARAMETERS) * width

    if stage == 0:
        # Float32 weights are updated in place; others have a float32 copy.
        master = FLOAT if low_precision else 0
        optimizer = trained * (ADAM + master)
    else:
        optimizer = shard * (ADAM + FLOAT)

    # ZeRO-2 and 3 keep only the shard of the gradients that the rank updates with.
    gradients = (trained if stage < 2 else shard) * FLOAT
    carried = gradients if accumulates else 0.0
    reduced = reduce_width(parallel)
    bucket = settings["reduce_bucket_size"] * float(reduced)
    update = shard * FLOAT
    if low_precision and stage == 1:
        # DeepSpeed's bfloat16 optimizer has one float32 buffer for good, to which bfloat16 gradients
        # are added as they come; on a pipeline's stage when its activations are gone.
        carried = gradients
    if go_to_owners(parallel, config.precision):
        # No buckets: float32 sums are reduced in place, others are copies.
        bucket = update = 0.0
        if ranks > 1 and reduced < FLOAT:
            update = trained * reduced
    if stage == 0:
        # Gradients are copied together for the all-reduce in the update, and cast.
        bucket = update = 0.0
        if ranks > 1:
            copies = width + (reduced if reduced != width else 0)
            update = min(trained, ALL_REDUCE_ELEMENTS) * copies
    if stage == 3:
        # Its bucket is there for good.
        carried = gradients + bucket
        update += bucket
        bucket = 0.0

    host = 0.0
    if parallel.offload_optimizer:
        # The float32 gradients of the shard go to the host too, where the update is computed.
        host += optimizer + shard * FLOAT
        optimizer = 0.0
    if parallel.offload_parameters:
        host += weights_shard
        weights -= weights_shard
    return StateBytes(weights, optimizer, gradients, carried, bucket, update, host)
