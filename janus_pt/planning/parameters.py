"""Parameters of a rank, counted on the model that a run builds, on the meta device.

The count of a layer is what `drop_other_stages` leaves for it, divided by the marks on its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

from torch import nn

from janus_pt.config.parallel_schema import padded_vocab_size
from janus_pt.config.schema import AdapterConfig, ModelConfig, OptimizerConfig
from janus_pt.model.layer_factory import is_summed_over_rows, partition_dim
from janus_pt.model.layer_numbers import head_layer, table_layers
from janus_pt.model.meta import build_on_meta
from janus_pt.model.output_bias import OutputBias
from janus_pt.parallel.materialize import drop_other_stages
from janus_pt.parallel.parameter_groups import trained_share, trains_all
from janus_pt.parallel.stages import one_layer_each

T = TypeVar("T")
TOKEN_TABLE = "embed_tokens"


@lru_cache(maxsize=64)
def layer_parameters(model: ModelConfig, tensor_parallel: int = 1) -> tuple[int, ...]:
    """Parameters of each layer on one of `tensor_parallel` ranks, without the shared token table."""
    return _of_all_layers(model, [_on_rank(part, tensor_parallel) for part in _parts(model)])


@lru_cache(maxsize=64)
def summed_over_rows(model: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Elements and number of each layer's parameters whose gradients are summed where ranks share rows."""
    sizes = []
    for part in _parts(model):
        summed = [each.numel() for each in part.parameters() if is_summed_over_rows(each)]
        sizes.append((sum(summed), len(summed)))
    return _of_all_layers(model, sizes)


def _parts(model: ModelConfig) -> Iterator[nn.Module]:
    """Each layer of a model with one encoder and one decoder layer, without the shared token table."""
    small = model.model_copy(update={"encoder_layers": 1, "decoder_layers": 1})
    for layer in range(head_layer(small) + 1):
        part = build_on_meta(small)
        drop_other_stages(part, range(layer, layer + 1))
        part.embed_tokens = nn.Identity()
        yield part


def _of_all_layers(model: ModelConfig, of_parts: Sequence[T]) -> tuple[T, ...]:
    """What holds for each layer of `model` from what holds for each of `_parts`."""
    source_embedding, encoder_layer, slot_embedding, decoder_layer, head = of_parts
    return (
        source_embedding,
        *[encoder_layer] * model.encoder_layers,
        slot_embedding,
        *[decoder_layer] * model.decoder_layers,
        head,
    )


def table_parameters(model: ModelConfig, tensor_parallel: int) -> int:
    """Parameters of the shared token table on one of `tensor_parallel` ranks, padding counted."""
    return _on_rank(one_layer_each(model).embed_tokens, tensor_parallel)


def stage_parameters(
    model: ModelConfig, tensor_parallel: int, stages: Sequence[range]
) -> list[int]:
    """Parameters of a rank of each pipeline stage; `stages` are their layers.

    A stage holds the shared token table once, however many of its layers read it.
    """
    layers = layer_parameters(model, tensor_parallel)
    table = table_parameters(model, tensor_parallel)
    counts = []
    for held in stages:
        count = sum(layers[layer] for layer in held)
        if not set(table_layers(model)).isdisjoint(held):
            count += table
        counts.append(count)
    return counts


def model_parameters(model: ModelConfig) -> int:
    """Parameters of the unsharded model: each token table once, without padding."""
    repeats = {"encoder.layers.0": model.encoder_layers, "decoder.layers.0": model.decoder_layers}
    count = 0
    for name, parameter in one_layer_each(model).named_parameters():
        layer = ".".join(name.split(".")[:3])
        count += parameter.numel() * repeats.get(layer, 1)
    return count


def trained_on_rank(
    parameters: int, model: ModelConfig, optimizer: OptimizerConfig, adapter: AdapterConfig | None
) -> float:
    """How many of a rank's `parameters` are trained.

    Where some are frozen, every stage is taken to train the share that the whole model trains.
    """
    if trains_all(optimizer, adapter):
        # Counting the share builds the whole model on meta, which takes long beside the formulas.
        return float(parameters)
    return parameters * trained_share(model, optimizer, adapter)


def _on_rank(part: nn.Module, tensor_parallel: int) -> int:
    count = 0
    for module in part.modules():
        for parameter in module.parameters(recurse=False):
            size = parameter.numel()
            dimension = partition_dim(parameter)
            if dimension is not None:
                rows = parameter.shape[dimension]
                if isinstance(module, nn.Embedding | OutputBias):
                    # Vocabularies are padded, so that all ranks have as many rows.
                    rows = padded_vocab_size(rows, tensor_parallel)
                size = size // parameter.shape[dimension] * rows // tensor_parallel
            count += size
    return count
