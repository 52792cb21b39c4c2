"""How many operations the host gives a GPU in a training step, and how long that takes it.

A GPU's work is started operation by operation: kernels, products, copies. How many there are follows
from the layers, the micro-batches and the way to train, hardly from sizes. They were counted on a GPU
that computes nothing (`python -m tests.support.null_gpu.launch_counts`), with block masks and dropout.
What one of them takes is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from janus_pt.config.schema import Config
from janus_pt.model.layer_numbers import (
    FIRST_ENCODER_LAYER,
    SOURCE_EMBEDDING,
    first_decoder_layer,
    head_layer,
    slot_embedding,
)
from janus_pt.objectives.fused_loss import chunk_rows
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.traffic import Traffic

LAUNCH_S = 5e-6
"""Seconds of the host for one operation. Assumed: the host of a GPU has not been measured."""


@dataclass(frozen=True)
class Operations:
    """Operations of an encoder layer, of a decoder layer, and of all else: embeddings, losses, update."""

    encoder_layer: float
    decoder_layer: float
    rest: float

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.encoder_layer + other.encoder_layer,
            self.decoder_layer + other.decoder_layer,
            self.rest + other.rest,
        )

    def of(self, encoder_layers: int, decoder_layers: int, share: float) -> float:
        """Their number for so many layers and a `share` of all else."""
        layers = self.encoder_layer * encoder_layers + self.decoder_layer * decoder_layers
        return layers + share * self.rest


MICRO_BATCH = {
    1: Operations(46, 74.7, 103),
    2: Operations(69, 109.3, 113),
    3: Operations(102.8, 166.9, 134),
}
"""Of a micro-batch's forward and backward pass, by ZeRO's stage.

From whole steps of `janus_base` and `janus_large` (ZeRO-2 of the latter alone) on a rank of 64, shared
out among encoder and decoder layers as in small models."""
STEP = {1: Operations(0, 0, 43), 2: Operations(0, 0, 71), 3: Operations(32.3, 52.4, 69)}
"""Of what comes once a step: counts, the gradient's norm, the update."""
RECOMPUTED = Operations(23, 36, 0)
"""More of a micro-batch whose layers are all recomputed."""
TENSOR = Operations(2, 1, 22)
"""More of a micro-batch with tensor parallelism."""
GRAPHS, GRAPHS_STEP = Operations(0, 0, 6), Operations(0, 0, 57)
"""With CUDA graphs, instead of all others."""
LOSS_CHUNK = 9
"""Of a chunk of the losses, which is the one thing that grows with a micro-batch."""


def host_seconds(
    config: Config,
    batch: MicroBatch,
    layers: range,
    traffic: Sequence[Traffic],
    micro_batches: int,
) -> tuple[float, float]:
    """Seconds of a stage's host: in the micro-batches of a step, and once a step.

    `traffic` is what the stage exchanges: each collective is launched, too.
    """
    in_micro_batches, once = stage_operations(config, batch, layers)
    for each in traffic:
        if each.axis == "data" or each.what == "table":
            once += each.calls
        else:
            in_micro_batches += each.calls / micro_batches
    return LAUNCH_S * micro_batches * in_micro_batches, LAUNCH_S * once


def stage_operations(config: Config, batch: MicroBatch, layers: range) -> tuple[float, float]:
    """Operations of a stage with `layers`, without collectives: of a micro-batch, and once a step."""
    model, parallel = config.model, config.parallel
    encoder = _overlap(layers, FIRST_ENCODER_LAYER, slot_embedding(model))
    decoder = _overlap(layers, first_decoder_layer(model), head_layer(model))
    # Two embeddings and the head, of which a stage may have one.
    ends = {SOURCE_EMBEDDING, slot_embedding(model), head_layer(model)}
    share = len(ends & {*layers}) / len(ends)

    if config.run.cuda_graphs:
        return GRAPHS.of(encoder, decoder, share), GRAPHS_STEP.of(encoder, decoder, share)
    passes, step = MICRO_BATCH[max(1, parallel.zero_stage)], STEP[max(1, parallel.zero_stage)]
    if parallel.tensor_parallel_size > 1:
        passes += TENSOR
    if parallel.activation_checkpointing != "none":
        passes += RECOMPUTED
    of_passes = passes.of(encoder, decoder, share)
    if head_layer(model) in layers:
        # The first one is in the counts.
        rows = math.ceil(model.vocab_size / parallel.tensor_parallel_size)
        chunks = math.ceil(batch.work.predicted_slots / chunk_rows(rows, batch.on_cpu))
        of_passes += LOSS_CHUNK * (chunks - 1)
    return of_passes, step.of(encoder, decoder, share)


def _overlap(layers: range, first: int, stop: int) -> int:
    return max(0, min(layers.stop, stop) - max(layers.start, first))
