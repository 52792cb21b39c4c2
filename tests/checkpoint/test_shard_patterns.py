"""How shards are joined again: every parameter, cut as it is in training, against DeepSpeed's own rule."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from janus_pt.checkpoint.shard_patterns import shard_patterns
from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.model.layer_factory import partition_dim
from janus_pt.model.meta import build_on_meta

SHAPE: dict[str, Any] = dict(
    vocab_size=48, hidden_size=16, ffn_hidden_size=24, num_attention_heads=4, encoder_layers=2,
    decoder_layers=3, max_positions=8, length_classes=6,
)  # fmt: skip
ALL_OPTIONS = {
    "pre_layer_norm": True,
    "embedding_projection": True,
    "causal_self_attention": True,
    "source_vocab_size": 32,
}


def join(shards: list[Tensor], name: str, patterns: dict[str, list[str]]) -> Tensor:
    """As `merge_tp_slices` of `deepspeed.checkpoint.ds_to_universal` does."""
    matched = {key: [p for p in each if re.match(p, name)] for key, each in patterns.items()}
    assert sum(map(len, matched.values())) <= 1, "DeepSpeed refuses a name that two patterns match"
    if matched["parameter_to_average_patterns"]:
        return sum(shards[1:], shards[0]) / len(shards)
    return torch.cat(shards, 1 if matched["parameter_with_row_parallelism_patterns"] else 0)


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS])
@pytest.mark.parametrize(
    "adapter",
    [
        None,
        AdapterConfig(target_modules=("decoder.layers.2", "fc1")),
        AdapterConfig(kind="bottleneck"),
    ],
)
@pytest.mark.parametrize("stage", ["", "2."])
def test_shards_joined_are_the_parameter(
    options: dict[str, Any], adapter: AdapterConfig | None, stage: str
) -> None:
    config = ModelConfig.model_validate({**SHAPE, **options})
    patterns = shard_patterns(config, adapter)
    for name, parameter in build_on_meta(config, adapter).named_parameters():
        whole = torch.arange(float(parameter.numel())).view(parameter.shape)
        dimension = partition_dim(parameter)
        shards = [whole, whole] if dimension is None else list(whole.chunk(2, dimension))
        assert join(shards, f"{stage}model.{name}", patterns).equal(whole), name
