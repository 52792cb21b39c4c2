"""The visibility function against the table of streams, read word by word; and every form of the mask made from it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from janus_pt.config.schema import ModelConfig
from janus_pt.model import block_masks
from janus_pt.model.block_masks import (
    TABLES,
    cross_block_mask,
    prepare_blocks,
    slots_block_mask,
    source_block_mask,
)
from janus_pt.model.masks import readable
from janus_pt.packing.batch import Batch, Example, collate
from janus_pt.packing.padded import ROW_STEP
from janus_pt.packing.row_layout import pack_row
from janus_pt.packing.slots import POSITION, TOKEN
from tests.support.examples import make_example_of

MASK = 4
BLOCK = 8
"""Of the masks that are looked at block by block."""


@st.composite
def examples(draw: st.DrawFn) -> list[tuple[Example, list[int]]]:
    """Up to four examples with their masked positions; none masked and all masked included."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        inner = draw(st.integers(1, 7))
        masked = [p for p in range(1, inner + 1) if draw(st.booleans())]
        target = np.array([1, *range(10, 10 + inner), 2])
        source = np.array([1, *range(20, 20 + draw(st.integers(1, 5))), 2])
        example = make_example_of("janus", source, target, np.array(masked, dtype=int))
        made.append((example, masked))
    return made


def described(
    example: Example, masked: list[int]
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Contents and queries as (stream, index): AR by order, the others by target position."""
    length = example.length
    contents = [("ar", t) for t in range(length - 1)]
    contents += [("seen", p) for p in range(length) if p not in masked]
    contents += [("mask", p) for p in masked] + [("true", p) for p in masked]
    return contents, [("ar query", t) for t in range(length - 1)] + [("aux", p) for p in masked]


def may_read(reader: tuple[str, int], key: tuple[str, int]) -> bool:
    """METHOD's table of streams in words."""
    (stream, at), (kind, place) = reader, key
    if stream in ("ar", "ar query"):
        return kind == "ar" and place <= at
    if kind == "seen":
        return True
    if stream in ("seen", "mask"):
        return kind == "mask"
    if (
        stream == "true"
    ):  # not the mask symbols of its own rank or before, the true tokens up to its own
        return (kind == "mask" and place > at) or (kind == "true" and place <= at)
    return (kind == "mask" and place >= at) or (kind == "true" and place < at)


@settings(max_examples=60, deadline=None)
@given(examples())
def test_every_pair_of_slots_against_the_table(made: list[tuple[Example, list[int]]]) -> None:
    batch = collate([example for example, _ in made])
    slots, places = batch.slots, pack_row([example for example, _ in made])
    mask = readable(slots.table[0], slots.table[0, : slots.num_content])
    covered = torch.zeros_like(mask)
    for readers, contents in zip(slots.query_layout.indices, slots.key_layout.indices, strict=True):
        for rows, keys in zip(readers, contents, strict=True):
            covered[rows[rows >= 0, None], keys[keys >= 0]] = True
    for (example, masked), own in zip(made, places.positions, strict=True):
        contents, queries = described(example, masked)
        columns = own.tolist()
        keys = columns[: len(contents)]
        assert max(keys) < slots.num_content <= min(columns[len(contents) :])
        for slot, reader in zip(columns, contents + queries, strict=True):
            seen = [key for key in range(slots.num_content) if mask[slot, key]]
            assert seen == sorted(
                c for c, key in zip(keys, contents, strict=True) if may_read(reader, key)
            ), reader
            assert covered[slot, seen].all(), "something is read that is not in the grids"
    assert slots.first_predicting == places.first_predicting
    used = sorted(np.concatenate(places.positions).tolist())
    assert used == torch.nonzero(slots.samples[0] >= 0).flatten().tolist(), (
        "each place is of one slot"
    )
    assert slots.table.shape[1] - len(used) < 3 * ROW_STEP and not mask[slots.samples[0] < 0].any()


@settings(max_examples=60, deadline=None)
@given(examples())
def test_streams_predict_prefixes_of_the_targets(made: list[tuple[Example, list[int]]]) -> None:
    batch = collate([example for example, _ in made])
    table = batch.slots.table[:, batch.slots.first_predicting :].flatten(0, 1)
    masked_count = sum(len(masked) for _, masked in made)
    assert {stream: len(slots) for stream, slots in batch.predict.items()} == {
        "ar": sum(example.length - 1 for example, _ in made),
        "nar": masked_count,
        "aux": masked_count,
    }
    first = batch.predict["ar"][:masked_count]
    for stream in ("nar", "aux"):
        slots = table[batch.predict[stream]]
        assert torch.equal(slots[:, TOKEN], torch.full((masked_count,), MASK, dtype=torch.int32))
        assert torch.equal(slots[:, POSITION], table[first][:, POSITION]), (
            "the AR query sits where the token is"
        )
        assert torch.equal(slots[:, POSITION].long() + 9, batch.targets[:masked_count])
    assert torch.equal(torch.sort(batch.targets).values, torch.sort(torch.cat([torch.from_numpy(np.array(
        [*range(10, 8 + example.length), 2])) for example, _ in made])).values)  # fmt: skip


def test_no_row_of_any_mask_is_empty() -> None:
    parts = [
        make_example_of(
            "janus", np.arange(n), np.array([1, *range(10, 10 + n), 2]), np.arange(1, n)
        )
        for n in (2, 6)
    ]
    slots = collate(parts).slots
    assert (
        readable(slots.table[0], slots.table[0, : slots.num_content])
        .any(-1)[slots.samples[0] >= 0]
        .all()
    )


def long_batch(sizes: list[int]) -> Batch:
    """Samples whose source and target have these numbers of tokens; a third of the target is masked."""
    targets = [np.array([1, *np.arange(n) % 90 + 10, 2]) for n in sizes]
    return collate([make_example_of("janus", t, t, np.arange(1, len(t) - 1, 3)) for t in targets])


def whole_masks(batch: Batch, first: int) -> list[tuple[Tensor, BlockMask]]:
    """The dense masks of the row, and those made of blocks: slots on contents, whole and causal, slots and source on
    source."""
    slots, samples = batch.slots, batch.source.samples[0]
    readers = slots.samples[0, first:]
    rows, keys = slots.table[0, first:], slots.table[0, : slots.num_content]
    return [
        (readable(rows, keys), slots_block_mask(slots, first)),
        (readable(rows, keys, causal=True), slots_block_mask(slots, first, causal=True)),
        (
            (readers[:, None] == samples) & (samples >= 0),
            cross_block_mask(slots, batch.source, first),
        ),
        (
            (samples[:, None] == samples) & (samples >= 0),
            source_block_mask(batch.source),
        ),
    ]


@pytest.mark.parametrize("from_first", [False, True])
def test_block_masks_read_what_dense_masks_read(from_first: bool) -> None:
    """FlexAttention with the block mask against SDPA with the dense one."""
    batch, generator = long_batch([9, 5, 40]), torch.Generator().manual_seed(0)
    for dense, blocks in whole_masks(batch, batch.slots.first_predicting * from_first):
        q, k, v = (
            torch.randn(1, 2, n, 16, generator=generator) for n in (*dense.shape, dense.shape[1])
        )
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
        real = dense.any(-1)
        found = flex_attention(q, k, v, block_mask=blocks)
        torch.testing.assert_close(found[:, :, real], expected[:, :, real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("from_first", [False, True])
def test_prepared_blocks_are_the_same_and_nothing_is_computed_for_them(from_first: bool) -> None:
    batch = long_batch([9, 5, 300])
    first = batch.slots.first_predicting * from_first
    prepared = prepare_blocks(batch, ModelConfig(vocab_size=100, causal_self_attention=True))
    # As a worker process hands it on, and a copy to a device.
    prepared = pickle.loads(pickle.dumps(prepared))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_masks, "_segments_in_common", None)
        found = whole_masks(prepared, first)
    for (dense, expected), (_, mask) in zip(whole_masks(batch, first), found, strict=True):
        for name in TABLES:
            assert torch.equal(getattr(mask, name), getattr(expected, name))
        q, k = (torch.arange(n) for n in dense.shape)
        zero = torch.zeros((), dtype=torch.long)
        assert torch.equal(mask.mask_mod(zero, zero, q[:, None], k), dense)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), from_first=st.booleans())
def test_blocks_that_are_left_out_hold_nothing_and_full_ones_everything(
    sizes: list[int], from_first: bool
) -> None:
    """And where a block is of one sample alone, no more is computed than torch's own count of every pair finds."""
    batch = long_batch(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_masks, "BLOCK", BLOCK)
        masks = whole_masks(batch, batch.slots.first_predicting * from_first)
    for dense, blocks in masks:
        rows, keys = (-(-n // BLOCK) * BLOCK for n in dense.shape)
        padded = torch.zeros(rows, keys, dtype=torch.bool)
        padded[: len(dense), : dense.shape[1]] = dense
        tiles = padded.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(1, 2)
        some, full = (tiles.flatten(2).any(-1), tiles.flatten(2).all(-1))
        partial = listed(blocks.kv_num_blocks, blocks.kv_indices)
        every = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
        assert (
            not (partial & every).any()
            and not (some & ~partial & ~every).any()
            and not (every & ~full).any()
        )
        if len(sizes) == 1 and all(dense is not mixed for mixed, _ in masks[:2]):
            assert torch.equal(partial | every, some)


def listed(count: Tensor, indices: Tensor) -> Tensor:
    """Which blocks of keys each block of readers lists."""
    count, indices = count[0, 0], indices[0, 0].long()
    found = torch.zeros(indices.shape, dtype=torch.bool)
    return found.scatter_(1, indices, torch.arange(indices.shape[1]) < count[:, None])


def test_blocks_of_a_long_sample_that_lie_in_the_future_are_left_out() -> None:
    """As in torch's own count of every pair, but for blocks that hold slots of both sides."""
    slots = long_batch([1500]).slots
    mask = slots_block_mask(slots, 0)
    dense = readable(slots.table[0], slots.table[0, : slots.num_content])
    exact = create_block_mask(
        lambda _b, _h, q, k: dense[q, k], None, None, *dense.shape, device="cpu"
    )
    ours, theirs = (
        (int(m.kv_num_blocks.sum()), int(m.full_kv_num_blocks.sum())) for m in (mask, exact)
    )
    assert ours[1] == theirs[1] > ours[0] and sum(ours) < 1.1 * sum(theirs)
