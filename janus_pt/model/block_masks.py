"""FlexAttention's masks of a packed row, without looking at each pair of slots.

A row of some thousand samples' slots has far more pairs than there is memory. Which pairs of a block
of queries and a block of keys are visible follows from two things: which segments occur in both
blocks, and the smallest and largest values of their other fields. From these each pair of blocks is
one of three kinds: empty (skipped by the kernel), full (read without a mask), or partial (the kernel
asks the visibility function for each pair of slots). A block may be called partial where it is really
empty or full, which costs time; never the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from janus_pt.config.schema import ModelConfig
from janus_pt.packing.batch import Batch
from janus_pt.packing.buffer import pack_tensors
from janus_pt.packing.slots import (
    POSITION,
    RANK,
    SEGMENT,
    START,
    STOP,
    UNTIL,
    Blocks,
    SlotBlocks,
    Slots,
    Source,
    visible,
)

BLOCK = 128
"""Queries, and keys, of a block: FlexAttention's default."""
TABLES = (
    "kv_num_blocks",
    "kv_indices",
    "full_kv_num_blocks",
    "full_kv_indices",
    "q_num_blocks",
    "q_indices",
    "full_q_num_blocks",
    "full_q_indices",
)
"""The tensors of a `BlockMask`, by their names there: how many blocks of keys are partial, or full, for each
block of queries, and which; then the same for each block of keys, as the backward pass wants it."""
NO_SEGMENT = -1
"""Segment of padding, and all fields of what `_in_blocks` adds behind the end of the row."""


def prepare_blocks(batch: Batch, config: ModelConfig) -> Batch:
    """The batch with the blocks of all masks that `config`'s layers have, of whatever device it is on.

    For the CPU: of some hundred small operations, which on a GPU take longer to launch than to run.
    """
    slots, source = batch.slots, batch.source
    # All slots for most layers; those that predict for the last one.
    firsts = {0, slots.first_predicting}
    kinds = {False, config.causal_self_attention}
    blocks = SlotBlocks(
        columns=_columns(slots),
        own={
            (first, causal): _own_blocks(slots, first, causal)
            for first in firsts
            for causal in kinds
        },
        source={first: _cross_blocks(slots, source, first) for first in firsts},
    )
    prepared: Batch = pack_tensors(
        replace(
            batch,
            slots=replace(slots, blocks=blocks),
            source=replace(source, blocks=_source_blocks(source)),
        )
    )
    return prepared


def slots_block_mask(slots: Slots, first: int, causal: bool = False) -> BlockMask:
    """The decoder's self-attention: slots from `first` on read content slots.

    `causal`: no slot reads to its right.
    """
    columns = _columns(slots)
    queries = columns[:, first:]
    keys = columns[:, : slots.num_content]
    query_segment, until, start, stop, query_position = (
        queries[field] for field in (SEGMENT, UNTIL, START, STOP, POSITION)
    )
    key_segment, key_rank, key_position = (keys[field] for field in (SEGMENT, RANK, POSITION))

    def mask_mod(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed: Tensor = visible(
            query_segment[q], until[q], start[q], stop[q], key_segment[k], key_rank[k]
        )
        if causal:
            allowed = allowed & (key_position[k] <= query_position[q])
        return allowed

    prepared = None if slots.blocks is None else slots.blocks.own.get((first, causal))
    blocks = prepared or _own_blocks(slots, first, causal)
    return _block_mask(blocks, mask_mod, (queries.shape[1], keys.shape[1]))


def cross_block_mask(slots: Slots, source: Source, first: int) -> BlockMask:
    """Cross-attention: slots from `first` on read the source tokens of their own sample."""
    prepared = None if slots.blocks is None else slots.blocks.source.get(first)
    blocks = prepared or _cross_blocks(slots, source, first)
    # Two segments a sample; padding stays -1.
    return _sample_block_mask(_columns(slots)[SEGMENT, first:] >> 1, source.samples[0], blocks)


def source_block_mask(source: Source) -> BlockMask:
    """The encoder's self-attention: source tokens read their own sample."""
    blocks = source.blocks or _source_blocks(source)
    # A tensor of its own, as in cross-attention: for a view, or the keys' again, the compiler would compile anew.
    return _sample_block_mask(source.samples[0].clone(), source.samples[0], blocks)


def _sample_block_mask(query_samples: Tensor, key_samples: Tensor, blocks: Blocks) -> BlockMask:
    """Queries read the keys of their own sample. One function, so that it is compiled once for all."""

    def mask_mod(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # Padding queries would match padding keys.
        return (query_samples[q] == key_samples[k]) & (key_samples[k] >= 0)

    return _block_mask(blocks, mask_mod, (len(query_samples), len(key_samples)))


def _columns(slots: Slots) -> Tensor:
    """The slots' table with a contiguous row a field, which the kernel reads by slot number."""
    return slots.table[0].t().contiguous() if slots.blocks is None else slots.blocks.columns


def _own_blocks(slots: Slots, first: int, causal: bool) -> Blocks:
    queries = slots.table[0, first:]
    keys = slots.table[0, : slots.num_content]
    any_rank, all_ranks = _ranks_in_reach(queries, keys)
    if causal:
        any_position, all_positions = _positions_in_reach(queries, keys)
        any_rank = any_rank & any_position
        all_ranks = all_ranks & all_positions
    # Two segments a sample (`packing/slots.py`); the layout has a row for each sample.
    num_segments = 2 * len(slots.query_layout.indices[0])
    any_segment, one_segment = _segments_in_common(
        queries[:, SEGMENT], keys[:, SEGMENT], num_segments
    )
    return _blocks(any_segment & any_rank, one_segment & all_ranks)


def _cross_blocks(slots: Slots, source: Source, first: int) -> Blocks:
    return _sample_blocks(slots.samples[0, first:], source)


def _source_blocks(source: Source) -> Blocks:
    return _sample_blocks(source.samples[0], source)


def _sample_blocks(query_samples: Tensor, source: Source) -> Blocks:
    """Queries, given by sample number, -1 padding, read the source tokens of their own sample."""
    assert source.layout is not None, "sources of a packed row have a layout"
    num_samples = len(source.layout.indices[0])
    return _blocks(*_segments_in_common(query_samples, source.samples[0], num_samples))


def _ranks_in_reach(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Whether some query of a block may see some key of another by its rank, and whether all see all.

    Both `[query blocks, key blocks]`; segments are not looked at. The two intervals are as in
    `packing.slots.visible`: [0, until) and [start, stop).
    """
    low, high = _extremes(queries)
    key_low, key_high = _extremes(keys)
    # [query blocks, 1] against [key blocks].
    lowest_until = low[:, UNTIL, None]
    highest_until = high[:, UNTIL, None]
    lowest_start = low[:, START, None]
    highest_start = high[:, START, None]
    lowest_stop = low[:, STOP, None]
    highest_stop = high[:, STOP, None]
    lowest_rank = key_low[:, RANK]
    highest_rank = key_high[:, RANK]

    # Some query may see some key: the widest intervals meet the ranks of the block.
    some_known = lowest_rank < highest_until
    some_between = (highest_rank >= lowest_start) & (lowest_rank < highest_stop)

    # Every query sees every key: the narrowest intervals hold all ranks of the block.
    # A key of rank -1 (padding) is in no interval from 0 on.
    all_known = (lowest_rank >= 0) & (highest_rank < lowest_until)
    all_between = (lowest_rank >= highest_start) & (highest_rank < lowest_stop)

    some = some_known | some_between
    every = all_known | all_between
    return some, every


def _positions_in_reach(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Whether some key of a block is not to the right of some query of another, and whether no key is."""
    low, high = _extremes(queries)
    key_low, key_high = _extremes(keys)
    some = key_low[:, POSITION] <= high[:, POSITION, None]
    every = key_high[:, POSITION] <= low[:, POSITION, None]
    return some, every


def _segments_in_common(
    query_segments: Tensor, key_segments: Tensor, num_segments: int
) -> tuple[Tensor, Tensor]:
    """Whether a block of queries and one of keys share a segment, and whether they have that one alone.

    Both `[query blocks, key blocks]`.
    """
    query_blocks = _in_blocks(query_segments[:, None])[..., 0]
    key_blocks = _in_blocks(key_segments[:, None])[..., 0]
    # Segments can be far apart within a block (a row's sections repeat the samples), so their smallest
    # and largest say little. The count of common ones is a product of two tables of zeros and ones.
    in_query_block = _occurrence(query_blocks, num_segments)
    in_key_block = _occurrence(key_blocks, num_segments)
    in_both = in_query_block @ in_key_block.t() > 0

    low = query_blocks.amin(1)[:, None]
    high = query_blocks.amax(1)[:, None]
    key_low = key_blocks.amin(1)
    key_high = key_blocks.amax(1)
    # Two blocks of nothing but padding are alone in one segment as well, and must not be full.
    one_in_queries = low == high
    one_in_keys = key_low == key_high
    same = (low == key_low) & (key_low > NO_SEGMENT)
    alone = one_in_queries & one_in_keys & same
    return in_both, alone


def _occurrence(blocks: Tensor, num_segments: int) -> Tensor:
    """1 where a segment occurs in a block, else 0: `[blocks, num_segments]`, float32."""
    occurs = torch.zeros(len(blocks), num_segments + 1, device=blocks.device)
    # Column 0 takes what has no segment, and is cut off: no boolean index, so no wait for the device.
    occurs.scatter_(1, blocks.long() - NO_SEGMENT, 1.0)
    return occurs[:, 1:]


def _extremes(table: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each field in each block of `table [row, fields]`."""
    blocks = _in_blocks(table)
    return blocks.amin(1), blocks.amax(1)


def _in_blocks(table: Tensor) -> Tensor:
    """`[row, fields]` as `[blocks, BLOCK, fields]`, with -1 behind the end."""
    missing = -len(table) % BLOCK
    padded = F.pad(table, (0, 0, 0, missing), value=NO_SEGMENT)
    return padded.unflatten(0, (-1, BLOCK))


def _blocks(some: Tensor, every: Tensor) -> Blocks:
    """From `[query blocks, key blocks]`: which hold a visible pair, and which no other."""
    partial_counts, partial_indices = _ordered(some & ~every)
    full_counts, full_indices = _ordered(every)
    mask = BlockMask.from_kv_blocks(
        partial_counts, partial_indices, full_counts, full_indices, BLOCK_SIZE=BLOCK
    )
    return {name: getattr(mask, name) for name in TABLES}


def _block_mask(
    blocks: Blocks,
    mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    lengths: tuple[int, int],
) -> BlockMask:
    # A type checker cannot tell which keywords the names are.
    make: Any = BlockMask
    mask: BlockMask = make(lengths, **blocks, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=mask_mod)
    return mask


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries, how many key blocks are set, and their numbers before all others'.

    `[1, 1, query blocks]` and `[1, 1, query blocks, key blocks]`: one mask for all rows and heads.
    """
    counts = blocks.sum(-1, dtype=torch.int32)
    # The sort is stable: the numbers of the blocks that are set stay in ascending order.
    indices = blocks.int().argsort(stable=True, dim=-1, descending=True)
    indices = indices.int()
    return counts[None, None], indices[None, None]
