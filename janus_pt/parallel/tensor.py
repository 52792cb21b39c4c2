"""The layer factory on megatron-core, and tensors between their full and their sharded form."""

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

from janus_pt.config.parallel_schema import padded_vocab_size
from janus_pt.model.dropout import seed_generators
from janus_pt.model.layer_factory import ALONE, Layers, mark_copied_input, partition_dim
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.parallel.sequence import SharedRows, linear


class _NoExtraState:
    """megatron-core gives each module an extra state of None in the state dict, which DeepSpeed's
    universal converter cannot read. With torch's own method there is none."""

    get_extra_state = nn.Module.get_extra_state


# megatron-core adds the bias in a kernel of its own. On a GPU a layer that exchanges nothing takes
# torch's product, which adds it as it writes its result. On a CPU the sums would be rounded otherwise
# than they were in runs that have begun.


class _Column(_NoExtraState, ColumnParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and not (self.allreduce_dgrad or self.sequence_parallel):
            return F.linear(x, self.weight, self.bias)
        output, _ = super().forward(x)  # the second is the bias, where that is not added
        return output


class _Row(_NoExtraState, RowParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and self.input_size_per_partition == self.input_size:
            return F.linear(x, self.weight, self.bias)
        output, _ = super().forward(x)
        return output


class _ColumnOfGathered(_Column):
    """A column that is given the rows that `rows.enter` gathered."""

    rows: SharedRows

    def forward(self, x: Tensor) -> Tensor:
        if not self.rows.active:
            return super().forward(x)
        return linear(x, self.weight, self.bias)


class _ColumnOfOwnRows(_ColumnOfGathered):
    """A column that is given this rank's rows and reads all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.rows.enter(x))


class _RowToOwnRows(_Row):
    """A row that hands on this rank's rows."""

    rows: SharedRows

    def forward(self, x: Tensor) -> Tensor:
        if not self.rows.active:
            return super().forward(x)
        output = self.rows.leave(F.linear(x, self.weight))
        return output if self.bias is None else output + self.bias


class _EmbeddingToOwnRows(VocabParallelEmbedding):
    """A table that is given all tokens and hands on this rank's rows."""

    rows: SharedRows

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.rows.active:
            embedded: Tensor = super().forward(tokens)
            return embedded
        is_elsewhere = (tokens < self.vocab_start_index) | (tokens >= self.vocab_end_index)
        own = (tokens - self.vocab_start_index).masked_fill(is_elsewhere, 0)
        partial = F.embedding(own, self.weight).masked_fill(is_elsewhere[..., None], 0.0)
        return self.rows.leave(partial)


def tensor_parallel_layers(sequence_parallel: bool = False) -> Layers:
    """Layers that hold this rank's shard. Their weights are not set.

    The token table's rows are padded (`padded_vocab_size`).

    Args:
        sequence_parallel: ranks share rows between the layers (`sequence.py`).
    """
    size = parallel_state.get_tensor_model_parallel_world_size()
    shared_rows = SharedRows()
    rows = shared_rows if sequence_parallel else ALONE
    shared = _megatron_options(size)

    def make(kind: Callable[..., nn.Module], *sizes: int, **options: Any) -> nn.Module:
        layer = kind(*sizes, **options, **shared)
        layer.rows = rows  # type: ignore[assignment]
        return layer

    def column(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        kind = _ColumnOfOwnRows if sequence_parallel else _Column
        return make(kind, inputs, outputs, bias=bias, gather_output=False)

    def column_without_reduce(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        # Several columns that read the same input add up its gradient first, and reduce it once, in
        # `copy_to_tp_region`. A column of its own reduces beside computing its weight's gradient.
        kind = _ColumnOfGathered if sequence_parallel else _Column
        options = {"bias": bias, "gather_output": False, "disable_grad_reduce": True}
        layer = make(kind, inputs, outputs, **options)
        mark_copied_input(layer)
        return layer

    def column_of_all_rows(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        return make(_Column, inputs, outputs, bias=bias, gather_output=False)

    def row(inputs: int, outputs: int, /, bias: bool = True) -> nn.Module:
        kind = _RowToOwnRows if sequence_parallel else _Row
        return make(kind, inputs, outputs, bias=bias, input_is_parallel=True, skip_bias_add=False)

    def embedding(vocab_size: int, hidden_size: int) -> nn.Module:
        kind = _EmbeddingToOwnRows if sequence_parallel else VocabParallelEmbedding
        return make(kind, padded_vocab_size(vocab_size, size), hidden_size)

    def vocab_rows(vocab_size: int) -> int:
        return padded_vocab_size(vocab_size, size) // size

    return Layers(
        column=column,
        column_without_reduce=column_without_reduce,
        column_of_all_rows=column_of_all_rows,
        row=row,
        embedding=embedding,
        copy_to_tp_region=shared_rows.enter if sequence_parallel else _CopyToTpRegion.apply,
        copy_to_tp_layers=shared_rows.enter_layers if sequence_parallel else _CopyToTpRegion.apply,
        scale_replicated_grad=_ScaleReplicatedGrad.apply,
        tp_rng_fork=tp_rng_fork,
        vocab_rows=vocab_rows,
        tensor_parallel_size=size,
        rows=rows,
    )


def _megatron_options(size: int) -> dict[str, Any]:
    """What all of megatron-core's layers are given, for `size` tensor-parallel ranks."""
    return {
        # On the CPU, since the model is built on the meta device: megatron-core's other way asks
        # for CUDA.
        "config": ModelParallelConfig(tensor_model_parallel_size=size, use_cpu_initialization=True),
        # Weights come from the seed or a file later, sharded by us.
        "init_method": _leave_unset,
    }


def _leave_unset(weight: Tensor) -> Tensor:
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
            # A collective reads memory in order, whatever the strides say.
            gradient = gradient.contiguous()
            dist.all_reduce(gradient, group=group)
        return gradient


class _ScaleReplicatedGrad(_Identity):
    """Returns its input; divides the gradient by the number of ranks.

    All ranks hold this gradient identically, and a later reduction will add up their copies.
    """

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / parallel_state.get_tensor_model_parallel_world_size()


@contextmanager
def tp_rng_fork() -> Iterator[None]:
    """Inside, torch's generators differ between tensor-parallel ranks; outside they stay in step."""
    # Drawn from the CPU's generator, which is in step too: reading a number from the device's would
    # wait for the device.
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        seed_generators(seed + parallel_state.get_tensor_model_parallel_rank())
        yield


def vocab_shard(embedding: nn.Module, vocab_size: int) -> VocabShard:
    """This rank's rows of the vocabulary's projection, for the losses."""
    # A pipeline stage without the table has an `nn.Identity` in its place, and computes no loss.
    if not isinstance(embedding, VocabParallelEmbedding):
        return VocabShard(vocab_size)
    group: dist.ProcessGroup = parallel_state.get_tensor_model_parallel_group()
    sharded = dist.get_world_size(group) > 1
    return VocabShard(vocab_size, embedding.vocab_start_index, group if sharded else None)


def local_shard(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """This rank's part of the unsharded tensor, with zeros where the parameter is padded."""
    dimension = partition_dim(parameter)
    if dimension is None:
        return whole
    size = local_shape(parameter)[dimension]
    full_size = whole.shape[dimension]
    rank = parallel_state.get_tensor_model_parallel_rank()
    # Padding is at the end of the table, so the last ranks may hold few real rows, or none.
    start = min(rank * size, full_size)
    stop = min(start + size, full_size)
    shard = whole.narrow(dimension, start, stop - start)
    if stop - start == size:
        # Padding by nothing would be a copy.
        return shard
    # `F.pad` takes pairs of (before, after), the last dimension first.
    padding = [0, 0] * (whole.ndim - 1 - dimension) + [0, size - (stop - start)]
    return F.pad(shard, padding)


def full_tensor(parameter: nn.Parameter, shard: Tensor, shape: torch.Size) -> Tensor:
    """The unsharded tensor of `shape`, without padding; all tensor-parallel ranks take part.

    Args:
        shard: this rank's part of the parameter, or of something in its shape.
    """
    dimension = partition_dim(parameter)
    if dimension is None:
        return shard
    group = parallel_state.get_tensor_model_parallel_group()
    shards = [torch.empty_like(shard) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shards, shard.contiguous(), group=group)
    return torch.cat(shards, dimension).narrow(dimension, 0, shape[dimension])


def local_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of this tensor-parallel rank's part of a parameter."""
    # ZeRO-3 spreads the elements over data-parallel ranks and leaves the parameter empty.
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
