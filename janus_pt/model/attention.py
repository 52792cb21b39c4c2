"""Multi-head attention: on FlexAttention with a block mask, else with dense ones, for packed rows sample by sample."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from janus_pt.model.dropout import dropout as drop
from janus_pt.model.layer_factory import Layers
from janus_pt.model.padding import join_samples, split_samples
from janus_pt.packing.padded import PaddedLayout


@dataclass(frozen=True)
class SampleMask:
    """The mask of a packed row sample by sample: each part of `query_layout` reads the same part
    of `key_layout`, or its only one, with its dense mask, `[1, samples, queries or 1, keys]`."""

    query_layout: PaddedLayout
    key_layout: PaddedLayout
    masks: tuple[Tensor, ...]


Mask = Tensor | BlockMask | SampleMask
"""Dense `[batch, 1, queries, keys]`, boolean (true = may read) or what is added to the scores; FlexAttention's block
mask; or that of a packed row."""
KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, heads, keys, head_size]`."""
MIN_CAPACITY = 32
"""Content slots that a cache has room for at first."""


class LayerCache:
    """What one decoder layer remembers while a batch of sources is decoded.

    `memory`: keys and values of the sources, `[sources, heads, source, head_size]`. Decoding rows are sources × copies,
    source by source; copies share their source's memory, and it is never moved with them.

    The content slots' keys and values are kept only if `keep` is set. They lie in one buffer
    `[rows, heads, capacity, head_size]` each, which doubles when it is full.
    """

    def __init__(self, memory: KeysValues, keep: bool = True) -> None:
        self.memory = memory
        self.places: int | Tensor = 0
        """Where the next content slots go: from this place on in all rows, or place `[rows, slots]`."""
        self.reach = 0
        """Places that may have been written and are read, a mask permitting."""
        self._keep = keep
        self._keys = self._values = memory[0].new_empty(
            0, memory[0].shape[1], 0, memory[0].shape[3]
        )

    def extend(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Put the new content slots' keys and values at `places`; returns what is in reach."""
        if not self._keep:
            return keys, values
        if self.reach > self._keys.shape[2]:
            self._grow(len(keys))
        if isinstance(self.places, int):
            self._keys.narrow(2, self.places, keys.shape[2]).copy_(keys)
            self._values.narrow(2, self.places, keys.shape[2]).copy_(values)
        else:
            row = torch.arange(len(keys), device=keys.device)[:, None]
            self._keys[row, :, self.places] = keys.transpose(1, 2)
            self._values[row, :, self.places] = values.transpose(1, 2)
        return self._keys.narrow(2, 0, self.reach), self._values.narrow(2, 0, self.reach)

    def _grow(self, rows: int) -> None:
        old, capacity = self._keys.shape[2], max(MIN_CAPACITY, 2 * self._keys.shape[2], self.reach)
        _, heads, _, head_size = self._keys.shape
        # Zeros, not whatever was there: a place out of a row's sight has weight 0, and 0 · NaN is NaN.
        keys, values = self._keys.new_zeros(2, rows, heads, capacity, head_size).unbind(0)
        if old:
            keys[:, :, :old], values[:, :, :old] = self._keys, self._values
        self._keys, self._values = keys, values

    def select(self, rows: Tensor) -> None:
        """Row i of the content becomes what row `rows[i]` was; nothing beyond `reach` is moved. `memory` stays."""
        keys, values = (
            x.narrow(2, 0, self.reach).index_select(0, rows) for x in (self._keys, self._values)
        )
        if len(rows) == len(self._keys):
            self._keys.narrow(2, 0, self.reach).copy_(keys)
            self._values.narrow(2, 0, self.reach).copy_(values)
        else:
            self._keys, self._values = keys, values


class Attention(nn.Module):
    """Multi-head attention; with sharded `layers` it holds this rank's heads only, and what it reads has gone through
    `layers.copy_to_tp_region`."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, layers: Layers) -> None:
        super().__init__()
        self.head_size = hidden_size // num_heads
        self.dropout = dropout
        self.q_proj = layers.column_without_reduce(hidden_size, hidden_size)
        self.k_proj = layers.column_without_reduce(hidden_size, hidden_size)
        self.v_proj = layers.column_without_reduce(hidden_size, hidden_size)
        self.out_proj = layers.row(hidden_size, hidden_size)
        self.tp_rng_fork = layers.tp_rng_fork

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of the sequence `x [batch, keys, hidden]`."""
        return self._split_heads(self.k_proj(x)), self._split_heads(self.v_proj(x))

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Mask | None) -> Tensor:
        """What the slots `x [batch, slots, hidden]` read from the keys; same shape. No mask: every key is read."""
        queries = self._split_heads(self.q_proj(x))
        dropout = self.dropout if self.training else 0.0
        with self.tp_rng_fork() if dropout else nullcontext():
            heads = attend(queries, *keys_values, mask, dropout)
        return self.out_proj(heads.transpose(1, 2).flatten(2))


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Mask | None, dropout: float
) -> Tensor:
    """Scaled dot-product attention, `[batch, heads, queries, head_size]`.

    A block mask means FlexAttention, which has no dropout: `block_masks_apply` keeps the two apart.
    """
    if not queries.numel():  # in the last layer a side, or all of a batch, may have no slot left
        return queries
    if isinstance(mask, SampleMask):
        return _attend_by_sample(queries, keys, values, mask, dropout)
    if queries.device.type == "cpu" and queries.requires_grad and not isinstance(mask, BlockMask):
        return _attend_stepwise(queries, keys, values, mask, dropout)
    if isinstance(mask, BlockMask):
        return _flex_attention(queries.device.type)(queries, keys, values, block_mask=mask)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)


def _attend_by_sample(
    queries: Tensor, keys: Tensor, values: Tensor, mask: SampleMask, dropout: float
) -> Tensor:
    """`attend` for a packed row; heads and samples change places inside."""
    q, k, v = (
        split_samples(x[0].transpose(0, 1), grids)
        for x, grids in (
            (queries, mask.query_layout),
            (keys, mask.key_layout),
            (values, mask.key_layout),
        )
    )
    parts = tuple(
        attend(*part, dropout) for part in zip(q, cycle(k), cycle(v), mask.masks, strict=False)
    )
    return join_samples(parts, mask.query_layout).transpose(0, 1)[None]


def _attend_stepwise(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """`attend` for training on a CPU, where torch's kernel has no dropout and, in bfloat16, a backward pass ten times
    as slow as this."""
    batch, heads, length, size = queries.shape
    q, k, v = (x.reshape(batch * heads, -1, size) for x in (queries, keys, values))
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=size**-0.5)
    if mask is not None:
        added = mask if mask.is_floating_point() else additive(mask, scores.dtype)
        scores.view(batch, heads, length, -1).add_(added)
    weights = torch.softmax(scores, dim=-1)
    return torch.bmm(drop(weights, dropout), v).view(batch, heads, length, size)


@cache
def _flex_attention(device_type: str) -> Any:
    """FlexAttention compiled to a kernel on accelerators; on a CPU the eager form, which only tests use."""
    return flex_attention if device_type == "cpu" else torch.compile(flex_attention, dynamic=True)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers to add to the scores: 0 where `mask` is true, else the lowest. A row that reads nothing (of padding)
    then reads everything alike, and no number is NaN."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
