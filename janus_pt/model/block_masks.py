"""FlexAttention's masks of a packed row, without looking at each pair of slots.

A row of some thousand samples' slots has far more pairs than there is memory. What a block of readers may read of a
block of keys is told by which segments occur in both and by the smallest and largest of their other numbers: a block of
the mask that is left out holds nothing, one that is called full holds everything, and in all others the kernel asks
the visibility function for each pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from janus_pt.packing.slots import POSITION, RANK, SEGMENT, START, STOP, UNTIL, Slots, visible

BLOCK = 128
"""Readers, and keys, of a block."""


def slots_block_mask(slots: Slots, first: int, causal: bool = False) -> BlockMask:
    """The decoder's self-attention: the slots from `first` on read content slots; `causal`: none to their right."""
    rows, keys = slots.table[0, first:], slots.table[0, : slots.num_content]
    reader, until, start, stop = (
        rows[:, field].contiguous() for field in (SEGMENT, UNTIL, START, STOP)
    )
    segment, rank = (keys[:, field].contiguous() for field in (SEGMENT, RANK))
    place, key_place = rows[:, POSITION].contiguous(), keys[:, POSITION].contiguous()

    def seen(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed: Tensor = visible(reader[q], until[q], start[q], stop[q], segment[k], rank[k])
        return allowed & (key_place[k] <= place[q]) if causal else allowed

    (low, high), (key_low, key_high) = _extremes(rows), _extremes(keys)
    low, high, first_rank, last_rank = (
        low[:, None],
        high[:, None],
        key_low[:, RANK],
        key_high[:, RANK],
    )
    some = (first_rank < high[..., UNTIL]) | (last_rank >= low[..., START]) & (
        first_rank < high[..., STOP]
    )
    every = (first_rank >= 0) & (last_rank < low[..., UNTIL]) | (first_rank >= high[..., START]) & (
        last_rank < low[..., STOP]
    )
    if causal:
        some &= key_low[:, POSITION] <= high[..., POSITION]
        every &= key_high[:, POSITION] <= low[..., POSITION]
    share, alone = _segments(reader, segment, 2 * len(slots.query_layout.indices[0]))
    return _block_mask(share & some, alone & every, seen, (len(rows), len(keys)))


def source_block_mask(readers: Tensor, samples: Tensor, count: int) -> BlockMask:
    """Readers, a sample each, read the source tokens of their sample; there are `count` samples."""
    share, alone = _segments(readers, samples, count)

    def same(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (readers[q] == samples[k]) & (samples[k] >= 0)

    return _block_mask(share, alone, same, (len(readers), len(samples)))


def _blocked(x: Tensor) -> Tensor:
    """`[row, fields]` as `[blocks, BLOCK, fields]`, with -1 behind the end."""
    return F.pad(x, (0, 0, 0, -len(x) % BLOCK), value=-1).unflatten(0, (-1, BLOCK))


def _extremes(table: Tensor) -> tuple[Tensor, Tensor]:
    blocked = _blocked(table)
    return blocked.amin(1), blocked.amax(1)


def _segments(readers: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each block of readers and of keys, whether a segment is in both; and whether nothing else is in either."""
    found, ends = [], []
    for segments in (readers, keys):
        blocked = _blocked(segments[:, None])[..., 0]
        there = torch.zeros(len(blocked), count + 1, device=segments.device)
        found.append(there.scatter_(1, blocked.long() + 1, 1.0)[:, 1:])  # -1 is no segment
        ends.append((blocked.amin(1), blocked.amax(1)))
    (low, high), (key_low, key_high) = ends
    alone = (
        (low == high)[:, None] & (key_low == key_high) & (low[:, None] == key_low) & (key_low >= 0)
    )
    return found[0] @ found[1].t() > 0, alone


def _block_mask(
    some: Tensor,
    every: Tensor,
    mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    lengths: tuple[int, int],
) -> BlockMask:
    """From `[blocks of readers, blocks of keys]`: which hold something, and which of these everything."""

    def ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
        first = blocks.int().argsort(stable=True, dim=-1, descending=True)
        return blocks.sum(-1, dtype=torch.int32)[None, None], first.int()[None, None]

    return BlockMask.from_kv_blocks(
        *ordered(some & ~every),
        *ordered(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=lengths,
    )
