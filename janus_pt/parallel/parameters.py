"""How many parameters every layer of the chain has on a rank: a formula, no model is built.

The chain is that of `stages.py`. Its first layer, its slot embedding and its head share the token table; a stage
holds the table once, however many of the three it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from janus_pt.config.schema import ModelConfig, padded_vocab_size


def table_parameters(model: ModelConfig, tensor_parallel: int) -> int:
    """The token table's rows on a rank, padding counted, times the hidden size."""
    return (
        padded_vocab_size(model.vocab_size, tensor_parallel) // tensor_parallel * model.hidden_size
    )


def source_table_parameters(model: ModelConfig, tensor_parallel: int) -> int:
    """The same of the table that the source has for itself, 0 if it has none. It is in the chain's first layer."""
    return (
        padded_vocab_size(model.source_vocab_size or 0, tensor_parallel)
        // tensor_parallel
        * model.hidden_size
    )


def layer_parameters(model: ModelConfig, tensor_parallel: int = 1) -> list[int]:
    """Parameters of each layer of the chain on one of `tensor_parallel` ranks, without the token tables.

    Column-parallel layers split weight and bias, row-parallel layers the weight alone; all else is replicated.
    """
    d, ffn, tp = model.hidden_size, model.ffn_hidden_size, tensor_parallel
    norm = 2 * d
    attention = 3 * (d * d + d) // tp + d * d // tp + d
    feed_forward = (d * ffn + ffn) // tp + ffn * d // tp + d
    encoder = attention + feed_forward + 2 * norm
    decoder = (
        2 * attention + feed_forward + 3 * norm + (attention + norm) * model.causal_self_attention
    )
    positions = model.max_positions * d if model.positions == "learned" else 0
    embedding = (
        positions + norm * model.embedding_layer_norm + 2 * d * d * model.embedding_projection
    )
    last_norm = norm * model.pre_layer_norm
    return [
        embedding,
        *[encoder] * model.encoder_layers,
        embedding + last_norm,
        *[decoder] * model.decoder_layers,
        last_norm + model.length_classes * d,
    ]


def table_layers(model: ModelConfig) -> tuple[int, ...]:
    """The layers of the chain that read the shared token table: `landmarks`, the first only if the source shares it."""
    return landmarks(model)[model.source_vocab_size is not None :]


def landmarks(model: ModelConfig) -> tuple[int, int, int]:
    """Source embedding, slot embedding and head in the chain."""
    return 0, model.encoder_layers + 1, model.encoder_layers + model.decoder_layers + 2


def stage_parameters(model: ModelConfig, tensor_parallel: int, bounds: Sequence[int]) -> list[int]:
    """Parameters of a rank of each pipeline stage; `bounds` as `stages.stage_bounds` gives them."""
    layers, table = (
        layer_parameters(model, tensor_parallel),
        table_parameters(model, tensor_parallel),
    )
    layers[0] += source_table_parameters(model, tensor_parallel)
    return [
        sum(layers[start:stop])
        + table * any(start <= layer < stop for layer in table_layers(model))
        for start, stop in pairwise(bounds)
    ]


def model_parameters(model: ModelConfig) -> int:
    """Parameters of the model itself: each token table once, without padding."""
    return (
        sum(layer_parameters(model))
        + (model.vocab_size + (model.source_vocab_size or 0)) * model.hidden_size
    )
