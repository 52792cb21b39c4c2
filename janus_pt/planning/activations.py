"""What a micro-batch leaves in memory between its forward and its backward pass, by formula, for each layer.

Counted is what autograd keeps: inputs of linear layers and LayerNorms, queries, keys, values and what attention reads,
dropout masks. With n tokens, d the hidden and f the ffn size, t tensor-parallel ranks, in elements:

    encoder layer   4nd + (4nd + 2nf) / t
    decoder layer   6nd + (4nd + 2(c + s)d + 2nf) / t       n slots, c of them content, s source tokens
                    2nd + (2nd + 2cd) / t more with a causal self-attention

which is Korthikanti et al. (2022, "Reducing Activation Recomputation in Large Transformer Models") for two-stream
attention, without the attention matrix that fused kernels never store.
"""

from __future__ import annotations

from dataclasses import dataclass

from janus_pt.config.schema import Config, ModelConfig
from janus_pt.objectives.expected_sizes import SampleSizes
from janus_pt.objectives.fused_loss import chunk_rows

FLOAT = 4
CHUNK_COPIES = 3
"""Float32 arrays of a chunk's size in `losses.py`."""


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of `samples` alike, and the kind of device that computes it."""

    samples: float
    sizes: SampleSizes
    on_cpu: bool

    @property
    def source(self) -> float:
        """Source tokens."""
        return self.samples * self.sizes.source

    @property
    def slots(self) -> float:
        """Decoder slots."""
        return self.samples * self.sizes.slots


@dataclass(frozen=True)
class Kept:
    """Bytes of one layer: `kept` until its backward pass, `input` alone if the rest is computed again, and `working`
    on top of `kept` while its backward pass runs."""

    kept: float
    input: float
    working: float


def chain(config: Config, batch: MicroBatch) -> list[Kept]:
    """Each layer of the chain of `parallel/stages.py`; the head without its losses (`loss_bytes`)."""
    model, width = config.model, activation_width(config)
    d, tp = model.hidden_size * width, config.parallel.tensor_parallel_size
    ffn = (2 - (model.activation == "relu")) * model.ffn_hidden_size * width / tp
    ffn += _dropout(model.activation_dropout, batch, width) * model.ffn_hidden_size / tp
    drop = _dropout(model.dropout, batch, width) * model.hidden_size
    source, slots, sizes = batch.source, batch.slots, batch.sizes
    content = batch.samples * sizes.content

    def decoder(computed: float) -> float:
        """A layer of which `computed` slots a sample are computed."""
        rows = batch.samples * computed
        kept = rows * (6 * d + 4 * d / tp + ffn + 3 * drop) + 2 * (content + source) * d / tp
        kept += _attention(config, batch, computed, sizes.pairs / sizes.slots)
        if model.causal_self_attention:  # the first self-attention is of all slots
            kept += slots * (2 * d + 2 * d / tp + drop) + 2 * content * d / tp
            kept += _attention(config, batch, sizes.slots, sizes.pairs / sizes.slots)
        return kept + _attention(config, batch, computed, sizes.source)

    encoder = source * (4 * d + 4 * d / tp + ffn + 2 * drop) + _attention(
        config, batch, sizes.source, sizes.source
    )
    last = decoder(sizes.predicted) + batch.samples * (sizes.slots - sizes.predicted) * d
    backward = 3 * d + 2 * model.ffn_hidden_size * width / tp
    embedding = d * (model.embedding_layer_norm + 2 * model.embedding_projection) + drop
    norm = d * model.pre_layer_norm
    masks = _dense_masks(model, batch, width)
    return [
        Kept(source * embedding, source * embedding, 0),
        *[Kept(encoder, source * d, source * backward)] * model.encoder_layers,
        Kept(
            slots * embedding + source * norm + masks, slots * embedding + source * norm + masks, 0
        ),
        *[Kept(decoder(sizes.slots), slots * d, slots * backward)] * (model.decoder_layers - 1),
        Kept(last, slots * d, batch.samples * sizes.predicted * backward),
        Kept(slots * norm, slots * norm, 0),
    ]


def activation_width(config: Config) -> int:
    """Bytes of an activation or a weight."""
    return 2 if config.precision.dtype == "bfloat16" else FLOAT


def loss_bytes(config: Config, batch: MicroBatch) -> tuple[float, float]:
    """The head's peak in the forward walk over the vocabulary, and at the start of the backward pass.

    Forward: the slots, those that predict and their gradient, the table's gradient in float32 and a chunk. Backward:
    both gradients twice, as kept and as scaled, and the slots' gradient being summed.
    """
    model, width = config.model, activation_width(config)
    rows = -(-model.vocab_size // config.parallel.tensor_parallel_size)
    masked, whole = batch.samples * batch.sizes.masked, batch.samples * (batch.sizes.target - 1)
    predicted, d = batch.samples * batch.sizes.predicted, model.hidden_size
    chunk = rows * min(max(3 * masked, whole - masked), chunk_rows(rows, batch.on_cpu))
    forward = rows * d * FLOAT + (2 * predicted + batch.slots) * d * width
    forward += FLOAT * CHUNK_COPIES * chunk + (chunk + rows * d) * width * (width < FLOAT)
    backward = 2 * (rows + predicted + batch.slots) * d * width
    return forward, backward


def in_flight(stages: int, stage: int, micro_batches: int) -> int:
    """Micro-batches whose activations stage `stage` holds at once: the one-forward-one-backward schedule."""
    return min(stages - stage, micro_batches)


def stage_activations(
    config: Config, batch: MicroBatch, held: range, flying: int
) -> tuple[float, float]:
    """Bytes that the layers `held` by a stage keep for `flying` micro-batches, and what the dearest backward adds.

    All decoder layers of a stage read one encoder output. A pipeline's stage keeps what it hands on as well, and in
    the backward pass the gradients that it gets and gives.
    """
    layers, recompute = (
        [chain(config, batch)[layer] for layer in held],
        config.parallel.activation_checkpointing,
    )
    turn, head = (
        config.model.encoder_layers + 1,
        config.model.encoder_layers + config.model.decoder_layers + 2,
    )
    element = config.model.hidden_size * activation_width(config)
    encoded = batch.source * element
    first, last = (
        encoded + batch.slots * element * (layer > turn) for layer in (held[0], held[-1] + 1)
    )
    incoming, outgoing = first * (0 not in held), last * (head not in held)
    kept = (
        sum(layer.input if recompute else layer.kept for layer in layers)
        + encoded * (held[-1] > turn)
        + outgoing
    )
    working = max((layer.working + layer.kept * recompute for layer in layers), default=0.0)
    return flying * kept, working + incoming + outgoing


def _dropout(probability: float, batch: MicroBatch, width: int) -> int:
    """Bytes kept for each element: a boolean on accelerators; a CPU keeps the scaled mask in full."""
    if probability == 0:
        return 0
    return width if batch.on_cpu else 1


def _attention(config: Config, batch: MicroBatch, queries: float, keys: float) -> float:
    """Log-sum-exp of the fused kernels; a CPU keeps the weights, and with dropout its mask and the product."""
    model, width, tp = config.model, activation_width(config), config.parallel.tensor_parallel_size
    heads = model.num_attention_heads / tp
    if batch.on_cpu:
        return (
            batch.samples
            * width
            * heads
            * queries
            * keys
            * (3 if model.attention_dropout > 0 else 1)
        )
    return batch.samples * FLOAT * heads * queries


def _dense_masks(model: ModelConfig, batch: MicroBatch, width: int) -> float:
    """The masks as numbers, where no block mask is used: the encoder's, and the decoder's for its last layer and for
    all others."""
    if not batch.on_cpu and model.attention_dropout == 0:
        return 0.0
    sizes = batch.sizes
    read = sizes.pairs * (1 + model.causal_self_attention)
    return batch.samples * width * (read * (1 + sizes.predicted / sizes.slots) + 3 * sizes.source)
