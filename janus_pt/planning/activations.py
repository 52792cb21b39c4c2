"""What a micro-batch leaves in memory between its forward and its backward pass, by formula.

Each layer's `cost` says what autograd keeps of it; here elements become bytes, and layers a stage.
With n tokens, d the hidden and f the ffn size, t tensor-parallel ranks, that is, in elements:

    encoder layer   4nd + (4nd + 2nf) / t
    decoder layer   6nd + (4nd + 2(c + s)d + 2nf) / t       n slots, c of them content, s source tokens
                    2nd + (2nd + 2cd) / t more with a causal self-attention

which is Korthikanti et al. (2022, "Reducing Activation Recomputation in Large Transformer Models") for two-stream
attention, without the attention matrix that fused kernels never store. With their sequence parallelism all of it is
divided by t; the encoder's output, once a stage, and what losses read are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import torch

from janus_pt.config.parallel_schema import ParallelConfig, PrecisionConfig
from janus_pt.config.schema import ModelConfig
from janus_pt.model.cost import Cost, Sublayer, Workload
from janus_pt.model.layer_numbers import SOURCE_EMBEDDING, head_layer, slot_embedding
from janus_pt.model.masks import uses_block_masks
from janus_pt.model.recompute import LAYER
from janus_pt.objectives.expected_sizes import SampleSizes
from janus_pt.objectives.fused_loss import chunk_rows
from janus_pt.parallel.stages import layer_costs

FLOAT = 4
"""Bytes of a float32 number."""
CPU_CHUNK_COPIES = 3
"""Float32 arrays of a chunk's size in `objectives/fused_loss/eager.py`."""


class AttentionPath(Enum):
    """How attention is computed."""

    STEPWISE = auto()
    """On a CPU: product, softmax, product."""
    SIDE_BY_SIDE = auto()
    """By fused kernels with dense masks, the samples of a row side by side."""
    BLOCK_MASKS = auto()
    """By FlexAttention, in one row."""


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of `samples` of the same sizes, and the kind of device that computes it."""

    samples: float
    sizes: SampleSizes
    on_cpu: bool

    @property
    def work(self) -> Workload:
        """What the model computes, and what attention kernels multiply: whole blocks of slots."""
        sizes = self.sizes
        return Workload(
            source_tokens=self.samples * sizes.source,
            content_slots=self.samples * sizes.content,
            query_slots=self.samples * sizes.queries,
            predicted_slots=self.samples * sizes.predicted,
            source_length=sizes.source,
            content_length=sizes.pairs / sizes.slots,
        )


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one layer and micro-batch on a rank.

    `kept` stay until the layer's backward pass, `input` alone if the layer is recomputed in it, and
    `working` are needed on top of `kept` while the backward pass runs.
    """

    kept: float
    input: float
    working: float


@dataclass(frozen=True)
class StageActivations:
    """Bytes that a stage keeps of all micro-batches in flight, and that one backward pass adds."""

    kept: float
    working: float


def activation_width(precision: PrecisionConfig) -> int:
    """Bytes of an activation or a weight."""
    return 2 if precision.dtype == "bfloat16" else FLOAT


def reduce_width(parallel: ParallelConfig) -> int:
    """Bytes of a gradient on its way between data-parallel ranks."""
    return 2 if parallel.gradient_reduce_dtype == "bfloat16" else FLOAT


def layer_bytes(
    model: ModelConfig, parallel: ParallelConfig, width: int, batch: MicroBatch
) -> list[LayerBytes]:
    """Each layer's bytes in the order of `layer_numbers`; the head without its losses (`loss_bytes`).

    `width` is the bytes of an activation.
    """
    costs = layer_costs(model, batch.work)
    path = attention_path(model, batch.on_cpu)
    layers = [_layer_bytes(cost, parallel, width, path) for cost in costs]
    # All decoder layers read the same masks; they are made with the slot embedding.
    masks = _dense_masks(model, batch, width)
    embedding = layers[slot_embedding(model)]
    layers[slot_embedding(model)] = LayerBytes(
        embedding.kept + masks, embedding.input + masks, embedding.working
    )
    return layers


def attention_path(model: ModelConfig, on_cpu: bool) -> AttentionPath:
    """How attention is computed in training."""
    if on_cpu:
        return AttentionPath.STEPWISE
    device = torch.device("cuda")
    if uses_block_masks(device, model.attention_dropout, model.head_size):
        return AttentionPath.BLOCK_MASKS
    return AttentionPath.SIDE_BY_SIDE


def _layer_bytes(
    cost: Cost, parallel: ParallelConfig, width: int, path: AttentionPath
) -> LayerBytes:
    kept = _kept_bytes(cost, parallel, width, path)
    # The rows that ranks share are gathered here.
    working = cost.working.on_rank(parallel.tensor_parallel_size) * width
    # Embeddings and the head are never recomputed: all that they keep stays.
    layer_input = kept
    if cost.layer_input:
        layer_input = cost.layer_input / parallel.row_parallel_size * width
    for sublayer in cost.sublayers:
        if sublayer.kind == parallel.activation_checkpointing:
            again = _kept_bytes(sublayer, parallel, width, path)
            kept -= again
            # One sublayer at a time is there in full.
            working = max(working, again)
    return LayerBytes(kept, layer_input, working)


def _kept_bytes(
    cost: Cost | Sublayer, parallel: ParallelConfig, width: int, path: AttentionPath
) -> float:
    ranks, row_ranks = parallel.tensor_parallel_size, parallel.row_parallel_size
    on_cpu = path is AttentionPath.STEPWISE
    # An accelerator keeps a dropout mask of booleans; a CPU keeps the scaled mask in full.
    mask_width = width if on_cpu else 1
    kept = cost.kept.on_rank(ranks, row_ranks) * width
    kept += cost.dropout_masks.on_rank(ranks, row_ranks) * mask_width
    # A CPU keeps the attention weights, fused kernels one float32 number a query and head.
    if on_cpu:
        return kept + cost.attention_weights / ranks * width
    kept += cost.log_sum_exp / ranks * FLOAT
    if path is AttentionPath.SIDE_BY_SIDE:
        kept += cost.unjoined_outputs / ranks * width
    return kept


def _dense_masks(model: ModelConfig, batch: MicroBatch, width: int) -> float:
    """Bytes of the masks as numbers, where no block mask is used."""
    # Evaluation, which drops nothing out, needs less than training: it does not count.
    if attention_path(model, batch.on_cpu) is AttentionPath.BLOCK_MASKS:
        return 0.0
    sizes = batch.sizes
    decoder_mask = sizes.pairs
    if model.causal_self_attention:
        decoder_mask += sizes.pairs
    # The last decoder layer has masks of its own, with the rows of the slots that predict.
    decoder_masks = decoder_mask * (1 + sizes.predicted / sizes.slots)
    # The encoder's, and two for cross-attention, have a row a sample.
    source_masks = 3 * sizes.source
    return batch.samples * width * (decoder_masks + source_masks)


def loss_bytes(
    model: ModelConfig, tensor_parallel: int, width: int, batch: MicroBatch
) -> tuple[float, float]:
    """The head's peak in the forward walk over the vocabulary, and at the start of the backward pass."""
    hidden = model.hidden_size
    sizes = batch.sizes
    table_rows = -(-model.vocab_size // tensor_parallel)
    table = table_rows * hidden
    slots = batch.samples * sizes.slots
    predicted = batch.samples * sizes.predicted

    # A chunk of the vocabulary's scores has the rows of three streams at the masked tokens, or of one
    # stream at the others, whichever are more, up to what the loss takes at once.
    masked = batch.samples * sizes.masked
    unmasked = batch.samples * (sizes.target - 1) - masked
    rows = min(max(3 * masked, unmasked), chunk_rows(table_rows, batch.on_cpu))
    chunk = table_rows * rows

    # Forward: the table's gradient in float32, the slots, those that predict and their gradient, and
    # a chunk.
    forward = table * FLOAT + (2 * predicted + slots) * hidden * width
    forward += _chunk_bytes(chunk, table, width, batch.on_cpu)
    if model.output_bias:
        # The table with its bias is a copy of the table.
        forward += table * width
    # Backward: both gradients twice, as kept and as scaled, and the slots' gradient being summed.
    backward = 2 * (table + predicted * hidden + slots * hidden) * width
    return forward, backward


def _chunk_bytes(chunk: float, table: float, width: int, on_cpu: bool) -> float:
    """What the walk needs for a chunk of so many logits, over a table of so many elements."""
    if on_cpu:
        low_precision = (chunk + table) * width if width < FLOAT else 0.0
        # The chunk's scores and the table's part of the gradient in low precision as well.
        return FLOAT * CPU_CHUNK_COPIES * chunk + low_precision
    # `fused_loss/cuda.py`: logits in float32, which their gradient overwrites or stands beside.
    if width == FLOAT:
        return FLOAT * chunk
    # After the walk the table's gradient is copied to low precision, when the chunk is gone.
    return max((FLOAT + width) * chunk, table * width)


def in_flight(stages: int, stage: int, micro_batches: int) -> int:
    """Micro-batches whose activations stage `stage` holds at once: the one-forward-one-backward schedule."""
    return min(stages - stage, micro_batches)


def stage_activations(
    model: ModelConfig,
    parallel: ParallelConfig,
    width: int,
    batch: MicroBatch,
    held: range,
    flying: int,
) -> StageActivations:
    """Bytes of the layers `held` by a stage that has `flying` micro-batches in flight.

    All decoder layers of a stage read one encoder output. A pipeline's stage keeps what it hands on as
    well, and in the backward pass the gradients that it receives and sends.
    """
    every_layer = layer_bytes(model, parallel, width, batch)
    layers = [every_layer[number] for number in held]
    encoded = batch.work.source_tokens * model.hidden_size * width
    decoded = batch.work.slots * model.hidden_size * width
    decoder_starts = slot_embedding(model)

    incoming = outgoing = 0.0
    if SOURCE_EMBEDDING not in held:
        incoming = encoded + (decoded if held.start > decoder_starts else 0.0)
    if head_layer(model) not in held:
        outgoing = encoded + (decoded if held.stop > decoder_starts else 0.0)
    # Stages hand on a rank's own rows.
    incoming /= parallel.row_parallel_size
    outgoing /= parallel.row_parallel_size

    if parallel.activation_checkpointing == LAYER:
        kept = sum(layer.input for layer in layers)
        # A layer's backward pass computes first all that it would have kept.
        working = max(layer.working + layer.kept for layer in layers)
    else:
        kept = sum(layer.kept for layer in layers)
        working = max(layer.working for layer in layers)
    if held[-1] > decoder_starts:
        kept += encoded
    return StageActivations(kept=flying * (kept + outgoing), working=working + incoming + outgoing)
