"""What a rank exchanges with others in a training step, by formula, for each axis of the layout.

With w the bytes of an activation or weight, d the hidden size, P a stage's parameters on a rank, and per micro-batch
s source tokens, n slots, p that predict (the last layer computes no others), in bytes:

    data      ZeRO-0     all-reduce Pw                        once a step
              ZeRO-1     all-reduce Pw, all-gather Pw         once a step
              ZeRO-2     all-reduce Pw                        each micro-batch; all-gather Pw once a step
              ZeRO-3     reduce-scatter Pw, all-gather Pw     each micro-batch; twice what does not stay gathered
    tensor    encoder    all-reduce 2sdw forward, 2sdw backward
              decoder    all-reduce 3ndw forward, 3ndw backward; sdw backward once a stage
                         ndw more forward and backward with a causal self-attention
              embeddings all-reduce sdw and ndw
              losses     all-reduce pdw, and sums over the vocabulary in float32
    pipeline  boundary   (s + n)dw, without n as long as the decoder has not begun, there and back
              table      all-reduce of the token table's gradient in float32, once a step, if several stages have it

That is what megatron-core and DeepSpeed do, not the least that would do: DeepSpeed's ZeRO-1 and 2 reduce gradients
whole where their share would be enough. Counts and norms, some bytes a step, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from janus_pt.config.schema import Config
from janus_pt.objectives.fused_loss import chunk_rows
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.parallel.deepspeed_config import zero_optimization
from janus_pt.parallel.parameter_groups import trained_share, trains_all
from janus_pt.parallel.parameters import landmarks, stage_parameters, table_layers, table_parameters
from janus_pt.parallel.stages import stage_bounds
from janus_pt.planning.activations import FLOAT, MicroBatch, activation_width

HEADER = 1024
"""Bytes with which DeepSpeed announces the shape of what a stage hands on."""
REUSE_DISTANCE = 1_000_000_000
"""ZeRO-3 keeps weights gathered from the forward to the backward pass where fewer others are used in between
(DeepSpeed's `stage3_max_reuse_distance`)."""


@dataclass(frozen=True)
class Traffic:
    """`payload` bytes in `calls` collectives of one `kind` among `ranks` of an `axis`, over a whole step.

    The payload is the tensor as it is before an all-reduce or reduce-scatter, and after an all-gather.
    """

    axis: str
    what: str
    kind: str
    ranks: int
    payload: float
    calls: float

    @property
    def sent(self) -> float:
        """Bytes that a rank sends if the ranks stand in a ring, which is the least there can be."""
        rounds = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}
        return self.payload * (
            rounds[self.kind] * (self.ranks - 1) / self.ranks if self.kind in rounds else 1
        )


def step_traffic(config: Config, data_parallel: int, batch: MicroBatch) -> list[list[Traffic]]:
    """What a rank of each pipeline stage exchanges in a step of micro-batches like `batch`."""
    bounds = stage_bounds(config.model, config.parallel.pipeline_parallel_size)
    counts = stage_parameters(config.model, config.parallel.tensor_parallel_size, bounds)
    micro_batches = config.micro_batches_per_step // data_parallel
    stages = [range(start, stop) for start, stop in pairwise(bounds)]
    found = []
    for layers, parameters in zip(stages, counts, strict=True):
        every = [
            *_data(config, parameters, data_parallel, micro_batches),
            *_tensor(config, layers, batch, micro_batches),
            *_pipeline(config, layers, batch, micro_batches),
        ]
        found.append([traffic for traffic in every if traffic.ranks > 1 and traffic.payload])
    return found


def _data(config: Config, parameters: int, ranks: int, micro_batches: int) -> Iterator[Traffic]:
    width = activation_width(config)
    trained: float = parameters
    # Only where some parameters are frozen: the share is counted on a model built on meta, which
    # takes long beside the formulas.
    if not trains_all(config.optimizer, config.adapter):
        trained *= trained_share(config.model, config.optimizer, config.adapter)
    stage, gradients = config.parallel.zero_stage, trained * width
    settings: Mapping[str, Any] = zero_optimization(config.parallel, config.deepspeed)
    calls = -(-trained // settings["reduce_bucket_size"])
    if stage < 3:
        times = micro_batches if stage == 2 else 1
        yield Traffic("data", "gradients", "all-reduce", ranks, times * gradients, times * calls)
        if stage > 0:
            yield Traffic("data", "weights", "all-gather", ranks, gradients, 2)
        return
    kept = (
        settings.get("stage3_max_reuse_distance", REUSE_DISTANCE) / 2
    )  # used once on the way there, once back
    again = max(0.0, 1 - kept / parameters)
    gathered = (1 + again) * parameters * width
    yield Traffic(
        "data",
        "gradients",
        "reduce-scatter",
        ranks,
        micro_batches * gradients,
        micro_batches * calls,
    )
    yield Traffic(
        "data", "weights", "all-gather", ranks, micro_batches * gathered, micro_batches * calls
    )


def _tensor(
    config: Config, layers: range, batch: MicroBatch, micro_batches: int
) -> Iterator[Traffic]:
    model, ranks = config.model, config.parallel.tensor_parallel_size
    begin, turn, head = landmarks(model)
    again = 1 + config.parallel.activation_checkpointing
    samples, sizes = batch.samples, batch.sizes
    rows = calls = 0.0
    for layer in layers:
        computed = samples * (sizes.predicted if layer == head - 1 else sizes.slots)
        if layer in (begin, turn):
            rows, calls = rows + (batch.source if layer == begin else batch.slots), calls + 1
        elif layer < turn:
            rows, calls = rows + 2 * (again + 1) * batch.source, calls + 2 * (again + 1)
        elif layer < head:
            rows += (3 * again + 2) * computed + batch.slots
            calls += 3 * again + 3
            if model.causal_self_attention:  # all slots go through the first of the two
                rows, calls = rows + (again + 1) * batch.slots, calls + again + 1
    if max(layers.start, turn + 1) < min(
        layers.stop, head
    ):  # what its decoder layers read of the encoder
        rows, calls = rows + batch.source, calls + 1
    element = model.hidden_size * activation_width(config)
    yield Traffic(
        "tensor",
        "layers",
        "all-reduce",
        ranks,
        micro_batches * rows * element,
        micro_batches * calls,
    )
    if head in layers:
        terms = OBJECTIVES[config.objective.name].terms(config.objective)
        streams, predicted, masked = (
            len(terms.streams),
            samples * sizes.predicted,
            samples * sizes.masked,
        )
        sums = 4 * predicted + streams**2 * masked * bool(terms.pairs)
        chunk = chunk_rows(-(-model.vocab_size // ranks), batch.on_cpu)
        payload = predicted * element + sums * FLOAT
        calls = streams + 2 * -(-predicted // chunk)
        yield Traffic(
            "tensor", "losses", "all-reduce", ranks, micro_batches * payload, micro_batches * calls
        )


def _pipeline(
    config: Config, layers: range, batch: MicroBatch, micro_batches: int
) -> Iterator[Traffic]:
    model, stages = config.model, config.parallel.pipeline_parallel_size
    (begin, turn, head), users = landmarks(model), table_layers(model)
    element = model.hidden_size * activation_width(config)

    def states(boundary: int) -> float:
        """Bytes of hidden states between the layer before `boundary` and the one behind."""
        return element * (batch.source + batch.slots * (boundary > turn))

    onward = (states(layers.stop) + HEADER) * (head not in layers)
    back = states(layers.start) * (begin not in layers)
    calls = 2 * (head not in layers) + (begin not in layers)
    yield Traffic(
        "pipeline", "states", "send", stages, micro_batches * (onward + back), micro_batches * calls
    )
    bounds = stage_bounds(model, stages)
    holders = sum(
        any(user in range(start, stop) for user in users) for start, stop in pairwise(bounds)
    )
    if any(user in layers for user in users):
        table = table_parameters(model, config.parallel.tensor_parallel_size) * FLOAT
        yield Traffic("pipeline", "table", "all-reduce", holders, table, 1)
