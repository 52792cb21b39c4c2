"""What a packed row's slots and tokens may read: masks sample by sample, or FlexAttention's block masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from janus_pt.model.attention import Mask, SampleMask, additive
from janus_pt.model.block_masks import slots_block_mask, source_block_mask
from janus_pt.packing.padded import PaddedLayout
from janus_pt.packing.slots import (
    POSITION,
    RANK,
    SEGMENT,
    START,
    STOP,
    UNTIL,
    Slots,
    Source,
    visible,
)


def uses_block_masks(device: torch.device, dropout: float) -> bool:
    """Whether masks are built for FlexAttention: on CUDA, unless attention weights are dropped out."""
    return device.type == "cuda" and dropout == 0.0


@dataclass(frozen=True)
class DecoderMasks:
    """What a decoder layer computes, the slots from `first` on, and what these may read (None: everything).

    With a `causal_mask`, that of a second self-attention, all slots go through the first one.
    """

    num_content: int
    first: int
    self_mask: Mask | None
    cross_mask: Mask | None
    causal_mask: Mask | None = None


def make_decoder_masks(
    slots: Slots, source: Source, dtype: torch.dtype, blocks: bool, causal: bool
) -> Callable[[bool], DecoderMasks]:
    """For the last layer (true), in which only slots that predict are computed, and for all others; made when first
    asked for.

    Masks that are not `blocks` are numbers of the activations' `dtype`. `causal`: there is a second self-attention.
    """
    assert source.layout is not None, "slots are decoded in one row"
    keys = source.layout

    @cache
    def reading(last: bool) -> DecoderMasks:
        first, readers = (
            (slots.first_predicting, slots.predicting_layout) if last else (0, slots.query_layout)
        )

        def contents_mask(past_only: bool) -> Mask:
            if blocks:
                return slots_block_mask(slots, first, past_only)
            return SampleMask(
                readers, slots.key_layout, sides_masks(slots, first, readers, dtype, past_only)
            )

        cross = (
            source_block_mask(slots.samples[0, first:], source.samples[0], len(keys.indices[0]))
            if blocks
            else tokens_mask(readers, keys, dtype)
        )
        if not causal:
            return DecoderMasks(slots.num_content, first, contents_mask(False), cross)
        every = reading(False).self_mask if last else contents_mask(False)
        return DecoderMasks(slots.num_content, first, every, cross, contents_mask(True))

    return reading


def encoder_mask(source: Source, dtype: torch.dtype, blocks: bool) -> Mask:
    """Who may read which source token: those of the same sample. `blocks` and `dtype` as in `make_decoder_masks`."""
    if source.layout is None:
        return additive((source.samples >= 0)[:, None, None], dtype)
    if blocks:
        return source_block_mask(
            source.samples[0], source.samples[0], len(source.layout.indices[0])
        )
    return tokens_mask(source.layout, source.layout, dtype)


def sides_masks(
    slots: Slots, first: int, readers: PaddedLayout, dtype: torch.dtype, causal: bool = False
) -> tuple[Tensor, ...]:
    """For each side the mask of its slots from `first` on, `readers`, and its contents."""
    masks = []
    for rows, keys in zip(readers.indices, slots.key_layout.indices, strict=True):
        seen = readable(
            slots.table[0, first:][rows.clamp(min=0)], slots.table[0][keys.clamp(min=0)], causal
        )
        masks.append(additive((seen & (keys >= 0)[:, None])[None], dtype))
    return tuple(masks)


def tokens_mask(readers: PaddedLayout, keys: PaddedLayout, dtype: torch.dtype) -> SampleMask:
    """All of `readers` read all source tokens `keys` of their sample."""
    mask = additive((keys.indices[0] >= 0)[None, :, None], dtype)
    return SampleMask(readers, keys, (mask,) * len(readers.indices))


def readable(rows: Tensor, keys: Tensor, causal: bool = False) -> Tensor:
    """Which of the contents `keys [..., keys, 7]` the slots `rows [..., rows, 7]` may read, `[..., rows, keys]`;
    `causal`: none to their right."""
    rows, keys = rows[..., :, None, :], keys[..., None, :, :]
    segment, until, start, stop = (rows[..., field] for field in (SEGMENT, UNTIL, START, STOP))
    seen: Tensor = visible(segment, until, start, stop, keys[..., SEGMENT], keys[..., RANK])
    return seen & (keys[..., POSITION] <= rows[..., POSITION]) if causal else seen
