"""The layer factory on megatron-core: weights sharded over the tensor-parallel group, and what that means for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from janus_pt.model.layer_factory import Layers, MakeLinear
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
    config = ModelParallelConfig(tensor_model_parallel_size=size, use_cpu_initialization=True)
    shared: dict[str, Any] = dict(config=config, init_method=lambda weight: weight)
    column, column_without_reduce = (_make_column(alone, shared) for alone in (True, False))
    row: MakeLinear = lambda i, o, bias=True: _Row(  # noqa: E731
        i, o, bias=bias, input_is_parallel=True, skip_bias_add=False, **shared
    )
    embedding: Callable[[int, int], nn.Module] = lambda rows, hidden: VocabParallelEmbedding(  # noqa: E731
        padded_vocab_size(rows, size), hidden, **shared
    )
    return Layers(
        column,
        column_without_reduce,
        row,
        embedding,
        _CopyToTpRegion.apply,
        _ScaleReplicatedGrad.apply,
        tp_rng_fork,
    )


def _make_column(alone: bool, shared: dict[str, Any]) -> MakeLinear:
    """A column that is `alone` adds up its input's gradient itself, beside computing that of its weight."""
    return lambda i, o, bias=True: _Column(
        i, o, bias=bias, gather_output=False, disable_grad_reduce=not alone, **shared
    )


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
    """Returns its input; of the gradient, which all ranks have alike and will add up, each keeps its share."""

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


def split_dimension(parameter: nn.Parameter) -> int | None:
    """The dimension that tensor-parallel ranks share out, or None for a parameter that each holds whole."""
    split: bool = getattr(parameter, "tensor_model_parallel", False)
    return getattr(parameter, "partition_dim", None) if split else None


def local_shard(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """This rank's part of the unsharded tensor, zeros where the parameter is padded."""
    dimension = split_dimension(parameter)
    if dimension is None:
        return whole
    size = local_shape(parameter)[dimension]
    start = min(parallel_state.get_tensor_model_parallel_rank() * size, whole.shape[dimension])
    part = whole.narrow(dimension, start, min(size, whole.shape[dimension] - start))
    missing = [0, 0] * (whole.ndim - 1 - dimension) + [0, size - part.shape[dimension]]
    return F.pad(part, missing)


def full_tensor(parameter: nn.Parameter, part: Tensor, shape: torch.Size) -> Tensor:
    """The unsharded tensor of `shape`, padding cut off, from every rank's part; all tensor-parallel ranks take part."""
    dimension = split_dimension(parameter)
    if dimension is None:
        return part
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dimension).narrow(dimension, 0, shape[dimension])


def local_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of this tensor-parallel rank's part, also when ZeRO-3 has shared out its elements."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
