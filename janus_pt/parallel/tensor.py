"""The layer factory on megatron-core: weights sharded over the tensor-parallel group, and what that means for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from torch import Tensor, nn

from janus_pt.config.schema import padded_vocab_size
from janus_pt.model.layer_factory import Layers, mark_copied_input, partition_dim
from janus_pt.objectives.fused_loss import VocabShard


class _NoExtraState:
    """megatron-core stores an `_extra_state` of None for each module; with torch's own method nothing is stored."""

    get_extra_state = nn.Module.get_extra_state


class _Column(_NoExtraState, ColumnParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _Row(_NoExtraState, RowParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


def tensor_parallel_layers() -> Layers:
    """Layers that hold this rank's share, the embedding's rows padded (`padded_vocab_size`). Weights are not set."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    # On the CPU, since the model is built on the meta device: megatron-core's other way asks for CUDA.
    config = ModelParallelConfig(tensor_model_parallel_size=size, use_cpu_initialization=True)
    shared: dict[str, Any] = {"config": config, "init_method": _leave_unset}

    def column(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        # Sums its input's gradient over the ranks itself, while it computes its weight's.
        return _Column(inputs, outputs, bias=bias, gather_output=False, **shared)

    def column_without_reduce(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        layer = _Column(
            inputs, outputs, bias=bias, gather_output=False, disable_grad_reduce=True, **shared
        )
        mark_copied_input(layer)
        return layer

    def row(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        return _Row(
            inputs, outputs, bias=bias, input_is_parallel=True, skip_bias_add=False, **shared
        )

    def embedding(rows: int, hidden_size: int) -> nn.Module:
        return VocabParallelEmbedding(padded_vocab_size(rows, size), hidden_size, **shared)

    return Layers(
        column=column,
        column_without_reduce=column_without_reduce,
        row=row,
        embedding=embedding,
        copy_to_tp_region=_CopyToTpRegion.apply,
        scale_replicated_grad=_ScaleReplicatedGrad.apply,
        tp_rng_fork=tp_rng_fork,
        tensor_parallel_size=size,
    )


def _leave_unset(weight: Tensor) -> Tensor:
    """Megatron-core's `init_method`: weights are set later, by `initialize_weights`."""
    return weight


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)


class _CopyToTpRegion(_Identity):
    """Returns its input; the gradient is summed over the tensor-parallel ranks."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        group: dist.ProcessGroup = parallel_state.get_tensor_model_parallel_group()
        if dist.get_world_size(group) > 1:
            gradient = gradient.contiguous()
            dist.all_reduce(gradient, group=group)
        return gradient


class _ScaleReplicatedGrad(_Identity):
    """Returns its input; the gradient, identical on all ranks and summed later, is divided by their number."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / parallel_state.get_tensor_model_parallel_world_size()


@contextmanager
def tp_rng_fork() -> Iterator[None]:
    """Inside, torch's generators differ between tensor-parallel ranks; outside they stay in step."""
    # From the CPU's generator, which is in step too: no device is waited for.
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed + parallel_state.get_tensor_model_parallel_rank())
        yield


def vocab_shard(embedding: nn.Module, vocab_size: int) -> VocabShard:
    """Which part of the vocabulary's projection this rank holds, for the losses."""
    if not isinstance(embedding, VocabParallelEmbedding):
        return VocabShard(vocab_size)
    group: dist.ProcessGroup = parallel_state.get_tensor_model_parallel_group()
    sharded = dist.get_world_size(group) > 1
    return VocabShard(vocab_size, embedding.vocab_start_index, group if sharded else None)


def local_shard(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """This rank's part of the unsharded tensor, zeros where the parameter is padded."""
    dimension = partition_dim(parameter)
    if dimension is None:
        return whole
    size = local_shape(parameter)[dimension]
    rank = parallel_state.get_tensor_model_parallel_rank()
    # The last ranks of a small vocabulary may have fewer rows than others, or none: the rest is padding.
    start = min(rank * size, whole.shape[dimension])
    length = min(size, whole.shape[dimension] - start)
    part = whole.narrow(dimension, start, length)
    # `F.pad` counts from the last dimension: none before and behind, then the missing ones behind.
    padding = [0, 0] * (whole.ndim - 1 - dimension) + [0, size - length]
    return F.pad(part, padding)


def full_tensor(parameter: nn.Parameter, part: Tensor, shape: torch.Size) -> Tensor:
    """The unsharded tensor of `shape`, padding cut off, from every rank's part; all tensor-parallel ranks take part."""
    dimension = partition_dim(parameter)
    if dimension is None:
        return part
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dimension).narrow(dimension, 0, shape[dimension])


def local_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of this tensor-parallel rank's part, also when ZeRO-3 has shared out its elements."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
