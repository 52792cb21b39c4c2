"""The visibility function against the table of streams, read word by word; and every form of the mask made from it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from janus_pt.model.attention import decoder_mask, source_mask
from janus_pt.objectives import janus
from janus_pt.objectives.arrange import arrange
from janus_pt.objectives.batch import Example, collate
from janus_pt.slots import POSITION, TOKEN

MASK = 4


@st.composite
def examples(draw: st.DrawFn) -> list[tuple[Example, list[int]]]:
    """Up to four examples with their masked positions; none masked and all masked included."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        inner = draw(st.integers(1, 7))
        masked = [p for p in range(1, inner + 1) if draw(st.booleans())]
        target = np.array([1, *range(10, 10 + inner), 2])
        source = np.array([1, *range(20, 20 + draw(st.integers(1, 5))), 2])
        made.append((janus.example(source, target, np.array(masked, dtype=int), MASK, 1), masked))
    return made


def described(example: Example, masked: list[int]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
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
    if stream == "true":  # not the mask symbols of its own rank or before, the true tokens up to its own
        return (kind == "mask" and place > at) or (kind == "true" and place <= at)
    return (kind == "mask" and place >= at) or (kind == "true" and place < at)


@settings(max_examples=60, deadline=None)
@given(examples())
def test_every_pair_of_slots_against_the_table(made: list[tuple[Example, list[int]]]) -> None:
    batch = collate([example for example, _ in made], 0)
    slots, places = batch.slots, arrange([example for example, _ in made])
    mask = decoder_mask(slots)[:, 0]
    tiles = torch.zeros_like(mask)
    for start, stop, key, key_end in slots.tiles:
        assert not tiles[:, start:stop].any(), "tiles overlap"
        tiles[:, start:stop, key:key_end] = True
    for row, (example, masked) in enumerate(made):
        contents, queries = described(example, masked)
        columns = places.columns[row].tolist()
        keys = columns[: len(contents)]
        assert max(keys) < slots.num_content <= min(columns[len(contents) :])
        for slot, reader in zip(columns, contents + queries, strict=True):
            seen = [key for key in range(slots.num_content) if mask[row, slot, key]]
            assert seen == sorted(c for c, key in zip(keys, contents, strict=True) if may_read(reader, key)), reader
            assert tiles[row, slot, seen].all(), "something is read outside of the tiles"
    assert slots.tiles == places.tiles and slots.first_predicting == places.first_predicting


@settings(max_examples=60, deadline=None)
@given(examples())
def test_streams_predict_prefixes_of_the_targets(made: list[tuple[Example, list[int]]]) -> None:
    batch = collate([example for example, _ in made], 0)
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
        assert torch.equal(slots[:, POSITION], table[first][:, POSITION]), "the AR query sits where the token is"
        assert torch.equal(slots[:, POSITION].long() + 9, batch.targets[:masked_count])
    assert torch.equal(torch.sort(batch.targets).values, torch.sort(torch.cat([torch.from_numpy(np.array(
        [*range(10, 8 + example.length), 2])) for example, _ in made])).values)  # fmt: skip


def test_no_row_of_any_mask_is_empty() -> None:
    parts = [
        janus.example(np.arange(n), np.array([1, *range(10, 10 + n), 2]), np.arange(1, n), MASK, 1) for n in (2, 6)
    ]
    batch = collate(parts, 0)
    assert decoder_mask(batch.slots).any(-1).all()
    assert source_mask(batch.slots.samples, batch.source).any(-1)[batch.slots.samples[:, None] >= 0].all()


def test_block_masks_read_what_dense_masks_read() -> None:
    """FlexAttention with the block mask against SDPA with the dense one, on the slots that are not padding."""
    parts = [
        janus.example(np.arange(n), np.array([1, *range(10, 10 + n), 2]), np.arange(1, n, 2), MASK, 1) for n in (9, 5)
    ]
    batch = collate(parts, 0)
    slots, source = batch.slots, batch.source
    generator = torch.Generator().manual_seed(0)
    forms = [
        (slots.table.shape[1], slots.num_content, decoder_mask(slots), decoder_mask(slots, blocks=True)),
        (
            slots.table.shape[1] - slots.first_predicting,
            slots.num_content,
            decoder_mask(slots, first=slots.first_predicting),
            decoder_mask(slots, blocks=True, first=slots.first_predicting),
        ),
        (
            slots.table.shape[1],
            source.tokens.shape[1],
            source_mask(slots.samples, source),
            source_mask(slots.samples, source, blocks=True),
        ),
    ]
    real = (slots.samples >= 0)[:, None, :, None]
    for rows, keys, dense, blocks in forms:
        q, k, v = (torch.randn(2, 2, n, 16, generator=generator) for n in (rows, keys, keys))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
        found = flex_attention(q, k, v, block_mask=blocks)
        torch.testing.assert_close(
            found * real[:, :, -rows:], expected.nan_to_num() * real[:, :, -rows:], rtol=1e-5, atol=1e-5
        )
