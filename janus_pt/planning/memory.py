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
from janus_pt.parallel.parameter_groups import trained_share, trains_all
from janus_pt.parallel.parameters import stage_parameters
from janus_pt.parallel.stages import stage_bounds
from janus_pt.planning.activations import (
    FLOAT,
    MicroBatch,
    activation_width,
    in_flight,
    loss_bytes,
    stage_activations,
)

ADAM = 2 * FLOAT
"""Bytes of a parameter's two moments."""
LIVE_PARAMETERS = 1_000_000_000
"""ZeRO-3 keeps up to this many gathered parameters for the backward pass (DeepSpeed's `stage3_max_live_parameters`)."""
ALL_REDUCE_ELEMENTS = 500_000_000
"""Most gradients that DeepSpeed copies together for one all-reduce where ZeRO does not reduce them in buckets."""


@dataclass(frozen=True)
class StateBytes:
    """What a rank keeps of its parameters, in bytes. `carried`: the part of `gradients` that is there before a
    micro-batch's backward pass; `bucket`: the buffer its reduction fills; `update`: copies made in the update."""

    weights: float
    optimizer: float
    gradients: float
    carried: float
    bucket: float
    update: float
    host: float


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one rank of a pipeline stage that holds `layers` of the chain.

    `activations` are those of all micro-batches in flight at their peak, `losses` what the head adds to them.
    `peak` is less than the sum where gradients and activations are not there at the same time; `host` is what offload
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
    parallel, model = config.parallel, config.model
    stages = parallel.pipeline_parallel_size
    bounds = stage_bounds(model, stages)
    counts = stage_parameters(model, parallel.tensor_parallel_size, bounds)
    micro_batches = config.micro_batches_per_step // data_parallel
    found = []
    for stage, parameters in enumerate(counts):
        held = range(bounds[stage], bounds[stage + 1])
        state = state_bytes(config, parameters, data_parallel)
        flying = in_flight(stages, stage, micro_batches)
        kept, working = stage_activations(config, batch, held, flying)
        forward, backward = loss_bytes(config, batch) if stage == stages - 1 else (0.0, 0.0)
        losses = max(forward, backward + state.bucket)
        activations = kept + max(0.0, working + state.bucket - losses)
        most = max(state.carried + activations + losses, state.gradients + state.update)
        found.append(
            StageMemory(
                held, parameters, state.weights, state.gradients, state.optimizer,
                activations, losses, state.weights + state.optimizer + most, state.host,
            )
        )  # fmt: skip
    return found


def state_bytes(config: Config, parameters: int, ranks: int) -> StateBytes:
    """Weights, gradients and optimizer state of `parameters` on a rank, `ranks` of which share what ZeRO shares.

    Where not all are trained, their share of this rank's is taken to be that of the whole model.
    """
    parallel, width = config.parallel, activation_width(config)
    stage, low = parallel.zero_stage, width < FLOAT
    accumulates = config.micro_batches_per_step > ranks
    trained: float = parameters
    # Only where some parameters are frozen: the share is counted on a model built on meta, which
    # takes long beside the formulas.
    if not trains_all(config.optimizer, config.adapter):
        trained *= trained_share(config.model, config.optimizer, config.adapter)
    share, all_share = trained / ranks, parameters / ranks
    settings: Mapping[str, Any] = zero_optimization(parallel, config.deepspeed)
    bucket = settings["reduce_bucket_size"] * float(FLOAT if stage == 1 else width)

    weights = (
        parameters * width
        if stage < 3
        else all_share * width + min(parameters, LIVE_PARAMETERS) * width
    )
    optimizer = trained * (ADAM + FLOAT * low) if stage == 0 else share * (FLOAT + ADAM)
    gradients = (trained if stage < 2 else share) * FLOAT
    carried, update = gradients * accumulates, share * FLOAT
    if (
        low and stage == 1
    ):  # one float32 buffer for good, and the bfloat16 gradients until the update
        bucket, carried = 0.0, gradients + trained * width * accumulates
        gradients += trained * width
    if stage == 0 or (low and stage == 1):
        bucket, update = 0.0, min(trained, ALL_REDUCE_ELEMENTS) * FLOAT * (ranks > 1)
    if stage == 3:
        carried = gradients
    host = 0.0
    if parallel.offload_optimizer:
        host += optimizer + share * FLOAT
        optimizer = 0.0
    if parallel.offload_parameters:
        host += all_share * width
        weights -= all_share * width
    return StateBytes(weights, optimizer, gradients, carried, bucket, update, host)
