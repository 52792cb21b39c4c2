"""Multi-head attention on SDPA (dense mask) or FlexAttention (block mask), and the masks themselves."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from janus_pt.model.layers import Layers
from janus_pt.slots import RANK, SEGMENT, START, STOP, UNTIL, Slots, Source, visible

Mask = Tensor | BlockMask
"""Dense boolean `[batch, 1, queries, keys]` (true = may read) or FlexAttention's block mask."""
KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, heads, keys, head_size]`."""


@dataclass
class LayerCache:
    """What one decoder layer remembers between steps of left-to-right decoding."""

    content: KeysValues | None = None
    memory: KeysValues | None = None

    def extend(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Append the new content slots' keys and values; returns all of them."""
        if self.content is not None:
            keys = torch.cat((self.content[0], keys), dim=2)
            values = torch.cat((self.content[1], values), dim=2)
        self.content = (keys, values)
        return self.content

    def select(self, rows: Tensor) -> None:
        """Row i of the content becomes what row `rows[i]` was; `memory` stays, so both must read the same source."""
        if self.content is not None:
            keys, values = self.content
            self.content = (keys.index_select(0, rows), values.index_select(0, rows))


class Attention(nn.Module):
    """Multi-head attention; with sharded `layers` it holds this rank's heads only."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, layers: Layers) -> None:
        super().__init__()
        self.head_size = hidden_size // num_heads
        self.dropout = dropout
        self.q_proj = layers.column(hidden_size, hidden_size)
        self.k_proj = layers.column(hidden_size, hidden_size)
        self.v_proj = layers.column(hidden_size, hidden_size)
        self.out_proj = layers.row(hidden_size, hidden_size)
        self.apart = layers.apart

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, -1, self.head_size).transpose(1, 2)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of the sequence `x [batch, keys, hidden]`."""
        return self._split_heads(self.k_proj(x)), self._split_heads(self.v_proj(x))

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Mask | None) -> Tensor:
        """What the slots `x [batch, slots, hidden]` read from the keys; same shape. No mask: every key is read."""
        queries = self._split_heads(self.q_proj(x))
        dropout = self.dropout if self.training else 0.0
        with self.apart() if dropout else nullcontext():
            heads = attend(queries, *keys_values, mask, dropout)
        return self.out_proj(heads.transpose(1, 2).flatten(2))


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Mask | None, dropout: float) -> Tensor:
    """Scaled dot-product attention, `[batch, heads, queries, head_size]`.

    A block mask means FlexAttention, which has no dropout: `block_masks_apply` keeps the two apart.
    """
    if isinstance(mask, BlockMask):
        return _flex_attention(queries.device.type)(queries, keys, values, block_mask=mask)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)


@cache
def _flex_attention(device_type: str) -> Any:
    """FlexAttention compiled to a kernel on accelerators; on a CPU the eager form, which only tests use."""
    return flex_attention if device_type == "cpu" else torch.compile(flex_attention, dynamic=True)


def block_masks_apply(device: torch.device, dropout: float) -> bool:
    """Whether masks are built for FlexAttention: on CUDA, unless attention weights are dropped out."""
    return device.type == "cuda" and dropout == 0.0


def decoder_mask(slots: Slots, blocks: bool = False) -> Mask:
    """The decoder's self-attention mask, slots × content slots, from the visibility function."""
    table, num_content = slots.table, slots.num_content
    if not blocks:
        keys, rows = table[:, None, :num_content], table[:, :, None]
        fields = (rows[..., SEGMENT], rows[..., UNTIL], rows[..., START], rows[..., STOP])
        return visible(*fields, keys[..., SEGMENT], keys[..., RANK])[:, None]
    segment, rank, until, start, stop = (table[..., f].contiguous() for f in (SEGMENT, RANK, UNTIL, START, STOP))

    def mask_mod(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(segment[b, q], until[b, q], start[b, q], stop[b, q], segment[b, k], rank[b, k])

    batch, length, _ = table.shape
    return create_block_mask(mask_mod, batch, None, length, num_content, device=str(table.device))


def source_mask(readers: Tensor, source: Source, blocks: bool = False) -> Mask:
    """Who may read which source token: those of the same sample. `readers` is `[batch, readers]`, a sample each
    (`source.samples` itself for the encoder, `slots.samples` for the decoder)."""
    samples = source.samples
    if not blocks:
        return (readers[:, :, None] == samples[:, None, :])[:, None]

    def mask_mod(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return readers[b, q] == samples[b, k]

    batch, length = samples.shape
    return create_block_mask(mask_mod, batch, None, readers.shape[1], length, device=str(samples.device))
