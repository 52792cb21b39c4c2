"""What a rank exchanges with others in a training step, by formula, for each axis of the layout.

With w the bytes of an activation or weight, g of a gradient that is sent (`parallel.gradient_reduce_dtype`), d the
hidden size, P a stage's parameters on a rank, and per micro-batch s source tokens, n slots, p that predict (the last
layer computes no others), in bytes:

    data      ZeRO-0     all-reduce Pg                        once a step
              ZeRO-1     all-reduce Pg, all-gather Pw         once a step; in bfloat16 reduce Pg to the owners, or
                         reduce-scatter Pg (`parallel/gradient_shares.py`)
              ZeRO-2     all-reduce Pg                        each micro-batch; all-gather Pw once a step
              ZeRO-3     reduce-scatter Pg, all-gather Pw     each micro-batch; twice what does not stay gathered
    tensor    encoder    all-reduce 2sdw forward, 2sdw backward
              decoder    all-reduce 3ndw forward, 3ndw backward; sdw backward once a stage
                         ndw more forward and backward with a causal self-attention
              embeddings all-reduce sdw and ndw
              losses     all-reduce pdw, and sums over the vocabulary in float32
    tensor, with sequence parallelism: for each all-reduce above a reduce-scatter there and an all-gather in the other
              pass; and all-gather once more, in the backward pass, what columns read, of which only a part is kept;
              all-gather (s + p)dw for the heads; all-reduce gradients of norms and of rows' biases
    pipeline  boundary   (s + n)dw, without n as long as the decoder has not begun, there and back
              table      all-reduce of the token table's gradient in float32, once a step, if several stages have it

That is what megatron-core and DeepSpeed do, not the least that would do: DeepSpeed's ZeRO-2, and ZeRO-1 in float32,
reduce whole gradients where their shard would be enough. Counts and norms, some bytes a step, are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from janus_pt.config.parallel_schema import ParallelConfig
from janus_pt.config.schema import Config, ModelConfig, ObjectiveConfig
from janus_pt.model.cost import AllReduces
from janus_pt.model.layer_numbers import (
    SOURCE_EMBEDDING,
    first_decoder_layer,
    head_layer,
    last_decoder_layer,
    slot_embedding,
    table_layers,
)
from janus_pt.model.recompute import LAYER
from janus_pt.objectives.fused_loss import chunk_rows
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.parallel.deepspeed_config import zero_optimization
from janus_pt.parallel.owners import CHUNK_ELEMENTS, go_to_owners, leave_early
from janus_pt.parallel.stages import layer_costs, pipeline_layers
from janus_pt.planning.activations import FLOAT, MicroBatch, activation_width, reduce_width
from janus_pt.planning.parameters import (
    stage_parameters,
    summed_over_rows,
    table_parameters,
    trained_on_rank,
)

REUSE_DISTANCE = 1_000_000_000
"""ZeRO-3 keeps weights gathered from the forward to the backward pass where fewer others are used in between
(DeepSpeed's `stage3_max_reuse_distance`)."""
RING_ROUNDS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "reduce": 1}
"""How often a ring passes the payload around: an all-reduce scatters and gathers."""


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
        if self.kind not in RING_ROUNDS:
            return self.payload
        return self.payload * RING_ROUNDS[self.kind] * (self.ranks - 1) / self.ranks

    def repeated(self, times: int) -> Traffic:
        """The same `times` over."""
        return replace(self, payload=times * self.payload, calls=times * self.calls)


def step_traffic(config: Config, data_parallel: int, batch: MicroBatch) -> list[list[Traffic]]:
    """What a rank of each pipeline stage exchanges in a step of micro-batches like `batch`."""
    model, parallel = config.model, config.parallel
    width = activation_width(config.precision)
    micro_batches = config.data.micro_batches_per_step // data_parallel
    stages = pipeline_layers(model, parallel.pipeline_parallel_size)
    counts = stage_parameters(model, parallel.tensor_parallel_size, stages)

    traffic = []
    for layers, parameters in zip(stages, counts, strict=True):
        # The tensor and pipeline axes exchange the same for every micro-batch.
        shares_rows = parallel.row_parallel_size > 1
        layer_traffic = _shared_rows_traffic if shares_rows else _layer_traffic
        for_one = list(layer_traffic(model, parallel, width, batch, layers))
        if head_layer(model) in layers:
            for_one.append(_loss_traffic(model, config.objective, parallel, width, batch))
        for_one.append(_boundary_traffic(model, parallel, width, batch, layers))
        every = [
            *_data_traffic(config, parameters, data_parallel, micro_batches),
            *(each.repeated(micro_batches) for each in for_one),
            *_table_traffic(model, parallel, stages, layers),
        ]
        # A group of one rank exchanges nothing.
        traffic.append([each for each in every if each.ranks > 1 and each.payload])
    return traffic


def _data_traffic(
    config: Config, parameters: int, ranks: int, micro_batches: int
) -> Iterator[Traffic]:
    """Gradients and weights of a rank's `parameters`, over a whole step."""
    width = activation_width(config.precision)
    trained = trained_on_rank(parameters, config.model, config.optimizer, config.adapter)
    gradients = trained * reduce_width(config.parallel)
    settings: Mapping[str, Any] = zero_optimization(config.parallel, config.deepspeed)
    # Gradients are reduced a full bucket at a time.
    buckets = math.ceil(trained / settings["reduce_bucket_size"])

    stage = config.parallel.zero_stage
    if go_to_owners(config.parallel, config.precision):
        yield _to_owners(gradients, trained, ranks, config)
        yield Traffic("data", "weights", "all-gather", ranks, trained * width, 2)
        return
    if stage < 3:
        # ZeRO-2 keeps no whole gradients: it reduces the gradients of every micro-batch.
        times = micro_batches if stage == 2 else 1
        yield Traffic("data", "gradients", "all-reduce", ranks, times * gradients, times * buckets)
        if stage > 0:
            # The two groups of the optimizer, with and without weight decay, are gathered one by one.
            yield Traffic("data", "weights", "all-gather", ranks, trained * width, 2)
        return

    yield Traffic("data", "gradients", "reduce-scatter", ranks, gradients, buckets).repeated(
        micro_batches
    )
    # The distance is counted on the way forward and back, so half of it is parameters that stay.
    stay = settings.get("stage3_max_reuse_distance", REUSE_DISTANCE) / 2
    gathered_again = max(0.0, 1 - stay / parameters)
    gathered = (1 + gathered_again) * parameters * width
    yield Traffic("data", "weights", "all-gather", ranks, gathered, buckets).repeated(micro_batches)


def _to_owners(gradients: float, trained: float, ranks: int, config: Config) -> Traffic:
    """Gradients that go to the ranks that keep them, in two flat tensors: with weight decay, and without."""
    is_pipeline = config.parallel.pipeline_parallel_size > 1
    if not leave_early(ranks, is_pipeline, config.run.cuda_graphs):
        return Traffic("data", "gradients", "reduce-scatter", ranks, gradients, 2)
    chunks = math.ceil(trained / CHUNK_ELEMENTS) + 1
    # A chunk that has more than one owner is cut.
    return Traffic("data", "gradients", "reduce", ranks, gradients, chunks + 2 * (ranks - 1))


def _layer_traffic(
    model: ModelConfig, parallel: ParallelConfig, width: int, batch: MicroBatch, layers: range
) -> Iterator[Traffic]:
    """All-reduces of embeddings and layers over the tensor-parallel ranks, for one micro-batch."""
    costs = layer_costs(model, batch.work)
    total = AllReduces()
    for layer in layers:
        cost = costs[layer]
        total += cost.forward + cost.backward
        if parallel.activation_checkpointing == LAYER and cost.layer_input:
            # A recomputed layer runs its forward pass twice. A recomputed sublayer ends in its sum
            # over the ranks, which the backward pass does not need again.
            total += cost.forward
    if has_decoder_layer(model, layers):
        # The gradient of the encoder's output is summed once for all decoder layers of the stage.
        total += AllReduces(batch.work.source_tokens * model.hidden_size, 1)
    ranks = parallel.tensor_parallel_size
    yield Traffic("tensor", "layers", "all-reduce", ranks, total.elements * width, total.calls)


def has_decoder_layer(model: ModelConfig, layers: range) -> bool:
    """Whether a decoder layer is among `layers`."""
    return max(layers.start, first_decoder_layer(model)) < min(layers.stop, head_layer(model))


def _shared_rows_traffic(
    model: ModelConfig, parallel: ParallelConfig, width: int, batch: MicroBatch, layers: range
) -> Iterator[Traffic]:
    """`_layer_traffic` where ranks share rows: what is gathered, scattered and summed."""
    work, hidden, part = batch.work, model.hidden_size, parallel.activation_checkpointing
    costs = layer_costs(model, work)
    gathers, scatters = AllReduces(), AllReduces()
    for layer in layers:
        leaves, enters = costs[layer].forward, costs[layer].backward
        # What leaves is scattered, and its gradient gathered; what enters is gathered, and its
        # gradient scattered. Weights' gradients gather it once more, as does a recomputation.
        gathers += leaves + enters + enters
        scatters += leaves + enters
        if part == LAYER and costs[layer].layer_input:
            scatters += leaves
    encoded = AllReduces(work.source_tokens * hidden, 1)
    if has_decoder_layer(model, layers):
        gathers += encoded
        scatters += encoded
    if last_decoder_layer(model) in layers:
        # The residual of the slots that predict, which are not the slots of the same ranks.
        moved = AllReduces(work.slots * hidden, 1)
        gathers += moved
        scatters += moved
        if part == LAYER:
            gathers += moved
    if head_layer(model) in layers:
        # Losses and the length head read all rows.
        gathers += AllReduces(work.predicted_slots * hidden, 1) + encoded
    ranks = parallel.tensor_parallel_size
    yield Traffic("tensor", "layers", "all-gather", ranks, gathers.elements * width, gathers.calls)
    elements, calls = scatters.elements * width, scatters.calls
    yield Traffic("tensor", "layers", "reduce-scatter", ranks, elements, calls)
    sums = [summed_over_rows(model)[layer] for layer in layers]
    elements, calls = sum(size for size, _ in sums), sum(count for _, count in sums)
    yield Traffic("tensor", "norms", "all-reduce", ranks, elements * width, calls)


def _loss_traffic(
    model: ModelConfig,
    objective: ObjectiveConfig,
    parallel: ParallelConfig,
    width: int,
    batch: MicroBatch,
) -> Traffic:
    """The loss over a sharded vocabulary, for one micro-batch (`objectives/fused_loss/`)."""
    ranks = parallel.tensor_parallel_size
    terms = OBJECTIVES[objective.name].terms(objective)
    streams = len(terms.streams)
    predicted = batch.work.predicted_slots
    masked = batch.samples * batch.sizes.masked

    # Sums over the vocabulary in float32: four a predicted token, and more at every masked token. On
    # CUDA it is two for each pair of streams, on a CPU one for each two streams if any are compared.
    sums = 4 * predicted
    if not batch.on_cpu:
        sums += 2 * len(terms.pairs) * masked
    elif terms.pairs:
        sums += streams**2 * masked
    # The gradient of the hidden states is summed over the ranks as well.
    payload = predicted * model.hidden_size * width + sums * FLOAT
    chunk = chunk_rows(math.ceil(model.vocab_size / ranks), batch.on_cpu)
    calls = streams + 2 * math.ceil(predicted / chunk)
    return Traffic("tensor", "losses", "all-reduce", ranks, payload, calls)


def _boundary_traffic(
    model: ModelConfig, parallel: ParallelConfig, width: int, batch: MicroBatch, layers: range
) -> Traffic:
    """Hidden states handed on to the next stage, and gradients back, for one micro-batch."""

    def states(boundary: int) -> float:
        """Bytes of hidden states that pass from the layer before `boundary` to it."""
        rows = batch.work.source_tokens
        if boundary > slot_embedding(model):
            rows += batch.work.slots
        return rows / parallel.row_parallel_size * model.hidden_size * width

    payload = calls = 0.0
    if head_layer(model) not in layers:
        payload += states(layers.stop)
        calls += 1
    if SOURCE_EMBEDDING not in layers:
        payload += states(layers.start)
        calls += 1
    stages = parallel.pipeline_parallel_size
    return Traffic("pipeline", "states", "send", stages, payload, calls)


def _table_traffic(
    model: ModelConfig, parallel: ParallelConfig, stages: Sequence[range], layers: range
) -> Iterator[Traffic]:
    """The gradient of the token table, summed over the stages that hold it, once a step."""
    readers = set(table_layers(model))
    if readers.isdisjoint(layers):
        return
    holders = sum(not readers.isdisjoint(stage) for stage in stages)
    table = table_parameters(model, parallel.tensor_parallel_size) * FLOAT
    yield Traffic("pipeline", "table", "all-reduce", holders, table, 1)
