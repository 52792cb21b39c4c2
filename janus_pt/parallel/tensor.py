"""The layer factory on megatron-core: weights sharded over the tensor-parallel group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from torch import Tensor, nn

from janus_pt.losses import VocabShard
from janus_pt.model.layers import Layers


class _NoExtraState:
    """megatron-core stores an `_extra_state` of None for each module; with torch's own method nothing is stored."""

    get_extra_state = nn.Module.get_extra_state


class _Column(_NoExtraState, ColumnParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _Row(_NoExtraState, RowParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


def tensor_parallel_layers(init_std: float, dtype: torch.dtype = torch.float32) -> Layers:
    """Layers that hold this rank's share; weights are drawn whole on every rank, then cut, so that a model does not
    depend on the tensor-parallel size."""
    config = ModelParallelConfig(
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        use_cpu_initialization=True,
        params_dtype=dtype,
    )
    shared = dict(config=config, init_method=partial(nn.init.normal_, std=init_std))
    column: Callable[[int, int], nn.Module] = lambda i, o: _Column(i, o, gather_output=False, **shared)  # noqa: E731
    row: Callable[[int, int], nn.Module] = lambda i, o: _Row(  # noqa: E731
        i, o, bias=True, input_is_parallel=True, skip_bias_add=False, **shared
    )
    return Layers(column, row, lambda rows, hidden: VocabParallelEmbedding(rows, hidden, **shared))


def vocab_shard(embedding: nn.Module, vocab_size: int) -> VocabShard:
    """Which part of the vocabulary's projection this rank holds, for the losses."""
    if not isinstance(embedding, VocabParallelEmbedding):
        return VocabShard(vocab_size)
    group: dist.ProcessGroup = parallel_state.get_tensor_model_parallel_group()
    sharded = dist.get_world_size(group) > 1
    return VocabShard(vocab_size, embedding.vocab_start_index, group if sharded else None)
