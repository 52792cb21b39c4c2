"""Multi-head attention: FlexAttention with a block mask, else with dense masks, sample by sample in packed rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask

from janus_pt.config.schema import ModelConfig
from janus_pt.model.cost import AllReduces, Cost, Elements, linear_size
from janus_pt.model.dropout import dropout as drop
from janus_pt.model.flex import attend_blocks
from janus_pt.model.joint_linear import joint_linear
from janus_pt.model.kv_cache import KeysValues
from janus_pt.model.layer_factory import Layers
from janus_pt.model.padding import join_samples, split_samples
from janus_pt.model.positions import Rotation
from janus_pt.model.recompute import ATTENTION
from janus_pt.packing.padded import PaddedLayout


@dataclass(frozen=True)
class SampleMask:
    """The mask of a packed row sample by sample.

    Part i of `query_layout` reads part i of `key_layout`, or its only part, under the dense mask
    `masks[i]`, `[1, samples, queries or 1, keys]`.
    """

    query_layout: PaddedLayout
    key_layout: PaddedLayout
    masks: tuple[Tensor, ...]


Mask = Tensor | BlockMask | SampleMask
"""Dense `[batch, 1, queries, keys]`, boolean (true = may read) or the numbers added to the scores;
FlexAttention's block mask; or the mask of a packed row."""


class Attention(nn.Module):
    """Multi-head attention.

    With sharded `layers` it holds this rank's heads only. Its inputs have gone through
    `layers.copy_to_tp_region`.
    """

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.head_size = config.head_size
        self.dropout = config.attention_dropout
        self.heads = config.num_attention_heads // layers.tensor_parallel_size
        self.key_value_heads = config.key_value_heads // layers.tensor_parallel_size
        key_size = config.key_value_heads * self.head_size
        self.q_proj = layers.column_without_reduce(hidden_size, hidden_size)
        self.k_proj = layers.column_without_reduce(hidden_size, key_size)
        self.v_proj = layers.column_without_reduce(hidden_size, key_size)
        self.out_proj = layers.row(hidden_size, hidden_size)
        self.tp_rng_fork = layers.tp_rng_fork
        self.qkv_proj: nn.Module | None = None
        """All three projections as one product, in decoding: see `join_projections`."""

    def _split_heads(self, x: Tensor, heads: int) -> Tensor:
        # By `view`: `unflatten` is written in Python, and a decoding step of one row feels it.
        # The number of heads is given: without slots it could not be inferred.
        return x.view(*x.shape[:-1], heads, self.head_size).transpose(1, 2)

    def join_projections(self) -> None:
        """Make one product of the three, whose weights become parts of its weight; for self-attention in decoding.

        Slots of which only queries, or only keys and values, are needed are projected whole from then on: a large
        product of few rows takes less time than several small ones. Layers that are sharded or have adapters stay as
        they are.
        """
        parts = (self.q_proj, self.k_proj, self.v_proj)
        plain = [part for part in parts if type(part) is nn.Linear and not _is_extended(part)]
        if len(plain) < len(parts):
            return
        joined = nn.utils.skip_init(
            nn.Linear, plain[0].in_features, sum(part.out_features for part in plain)
        )
        for name in ("weight", "bias"):
            values = [part.get_parameter(name).detach() for part in plain]
            # Column by column: MKL's product of a few rows is then faster.
            stored = torch.cat(values).t().contiguous().t()
            whole = nn.Parameter(stored, requires_grad=False)
            setattr(joined, name, whole)
            # Views: nothing is in memory twice, and what is saved keeps its names.
            for part, rows in zip(
                plain, whole.split([len(value) for value in values]), strict=True
            ):
                part.get_parameter(name).data = rows
        self.qkv_proj = joined.train(self.training)

    def project(
        self, x: Tensor, first: int, num_content: int, rotation: Rotation | None
    ) -> tuple[Tensor, KeysValues]:
        """Self-attention's queries of the slots of `x [batch, slots, hidden]` from `first` on, and keys and values of
        its first `num_content` slots; `rotation` is of all slots."""
        if self.qkv_proj is None:
            keys, values = self.keys_values(until(x, num_content))
            queries = self._split_heads(self.q_proj(since(x, first)), self.heads)
        else:
            sizes = (self.heads, self.key_value_heads, self.key_value_heads)
            heads = self._split_heads(self.qkv_proj(x), sum(sizes))
            queries, keys, values = heads.split(sizes, dim=1)
            if first or num_content < x.shape[1]:
                queries = queries[:, :, first:]
                keys = keys[:, :, :num_content]
                values = values[:, :, :num_content]
        if rotation is not None:
            # Keys are rotated by their own positions before they are cached: never again afterwards.
            keys = rotation.narrow(0, num_content).apply(keys)
            queries = rotation.narrow(first, x.shape[1]).apply(queries)
        return queries, (keys, values)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of the sequence `x [batch, keys, hidden]`, not rotated."""
        keys, values = joint_linear(x, self.k_proj, self.v_proj)
        heads = self.key_value_heads
        return self._split_heads(keys, heads), self._split_heads(values, heads)

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Mask | None) -> Tensor:
        """What the slots `x [batch, slots, hidden]` read from the keys, neither of which is rotated; same shape."""
        return self.read(self._split_heads(self.q_proj(x), self.heads), keys_values, mask)

    def read(self, queries: Tensor, keys_values: KeysValues, mask: Mask | None) -> Tensor:
        """What slots read by their `queries [batch, heads, slots, head_size]`, `[batch, slots, hidden]`.

        No mask: every key is read.
        """
        dropout = self.dropout if self.training else 0.0
        # Each rank has other heads: their weights must be dropped independently.
        with self.tp_rng_fork() if dropout else nullcontext():
            heads = attend(queries, *keys_values, mask, dropout)
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def cost(self, rows: float, queries: float, keys: float, keys_read: float) -> Cost:
        """Of `queries` slots that read `keys_read` of the `keys` each, on average.

        `rows` are the slots among which the queries, and in self-attention the keys, are. The sequence
        that cross-attention reads is not counted: it is the encoder's output, and no layer's own.
        """
        hidden, heads_size = self.out_proj.get_parameter("weight").shape
        keys_size = len(self.k_proj.get_parameter("weight"))
        heads = heads_size // self.head_size
        pairs = queries * keys_read
        # Scores and weighted sums: two products of a head's size for each pair and head.
        multiply_adds = 2 * heads_size * pairs
        multiply_adds += linear_size(self.q_proj, self.out_proj) * queries
        multiply_adds += linear_size(self.k_proj, self.v_proj) * keys
        # Queries, and what they read; keys and values.
        sharded = 2 * heads_size * queries + 2 * keys_size * keys
        # The softmax's result; dropout keeps its mask and the product as well.
        copies = 3 if self.dropout > 0 else 1
        cost = Cost(
            multiply_adds=multiply_adds,
            kept=Elements(replicated=hidden * rows, sharded=sharded),
            log_sum_exp=heads * queries,
            attention_weights=copies * heads * pairs,
            unjoined_outputs=heads_size * queries,
            # `out_proj` sums over the ranks, `copy_to_tp_region` the gradient of all rows.
            forward=AllReduces(hidden * queries, 1),
            backward=AllReduces(hidden * rows, 1),
        )
        return cost.recomputable_as(ATTENTION)


def _is_extended(layer: nn.Module) -> bool:
    """Whether a layer computes more than its own product: adapters are its children and run by hooks."""
    return bool(layer._forward_hooks) or any(True for _ in layer.children())


def since(x: Tensor, first: int) -> Tensor:
    """The slots from `first` on. A slice of everything would cost a copy in the backward pass."""
    return x[:, first:] if first else x


def until(x: Tensor, stop: int) -> Tensor:
    """The slots before `stop`."""
    return x[:, :stop] if stop < x.shape[1] else x


def kernels_for_decoding(device: torch.device) -> AbstractContextManager[None]:
    """The context in which attention does not take cuDNN's kernel on CUDA.

    cuDNN plans anew for each number of keys, and every decoding step has another one.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Mask | None, dropout: float
) -> Tensor:
    """Scaled dot-product attention, `[batch, heads, queries, head_size]`.

    Keys and values have as many heads as queries, or a divisor of that: neighbouring query heads share one.

    A block mask means FlexAttention, which has no dropout: `uses_block_masks` keeps the two apart.
    """
    # In the last layer a side, or all of a batch, may have no slot left. Kernels refuse empty queries.
    if not queries.numel():
        return queries
    if isinstance(mask, SampleMask):
        return _attend_by_sample(queries, keys, values, mask, dropout)
    if isinstance(mask, BlockMask):
        return attend_blocks(queries, keys, values, mask)
    if queries.device.type == "cpu" and queries.requires_grad:
        return _attend_stepwise(queries, keys, values, mask, dropout)
    # Fewer heads of keys than of queries: the kernels read each as often as it is needed.
    # `bool`: while a pass is recorded, sizes are tensors.
    is_grouped = bool(keys.shape[1] != queries.shape[1])
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, dropout_p=dropout, enable_gqa=is_grouped
    )


def _attend_by_sample(
    queries: Tensor, keys: Tensor, values: Tensor, mask: SampleMask, dropout: float
) -> Tensor:
    """`attend` for one packed row, `[1, heads, slots, head_size]`: its samples side by side."""
    keys, values = _repeat_heads(keys, values, queries.shape[1])
    query_parts = split_samples(queries[0].transpose(0, 1), mask.query_layout)
    key_parts = split_samples(keys[0].transpose(0, 1), mask.key_layout)
    value_parts = split_samples(values[0].transpose(0, 1), mask.key_layout)
    # Heads stand first and samples second here: to `attend`, heads are the batch.
    outputs = []
    for index, part_mask in enumerate(mask.masks):
        # Source tokens have one part, which the slots of every side read.
        key_index = index if len(key_parts) > 1 else 0
        outputs.append(
            attend(
                query_parts[index], key_parts[key_index], value_parts[key_index], part_mask, dropout
            )
        )
    return join_samples(tuple(outputs), mask.query_layout).transpose(0, 1)[None]


def _attend_stepwise(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """`attend` for training on a CPU, where torch's kernel has no dropout and, in bfloat16, a backward
    pass ten times as slow as this."""
    batch, heads, length, size = queries.shape
    keys, values = _repeat_heads(keys, values, heads)
    q = queries.reshape(batch * heads, -1, size)
    k = keys.reshape(batch * heads, -1, size)
    v = values.reshape(batch * heads, -1, size)
    # With beta = 0 the first argument is not read: one kernel multiplies and scales.
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=size**-0.5)
    if mask is not None:
        added = mask if mask.is_floating_point() else additive(mask, scores.dtype)
        # In place: the product's backward pass needs its inputs only.
        scores.view(batch, heads, length, -1).add_(added)
    weights = torch.softmax(scores, dim=-1)
    return torch.bmm(drop(weights, dropout), v).view(batch, heads, length, size)


def _repeat_heads(keys: Tensor, values: Tensor, num_heads: int) -> KeysValues:
    """A head of keys and values for each of `num_heads` query heads: neighbouring ones share one."""
    group_size = num_heads // keys.shape[1]
    if group_size == 1:
        return keys, values
    return keys.repeat_interleave(group_size, dim=1), values.repeat_interleave(group_size, dim=1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers to add to the scores: 0 where `mask` is true, else the lowest.

    A row of padding, which reads nothing, then reads all keys equally, and no number is NaN.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
