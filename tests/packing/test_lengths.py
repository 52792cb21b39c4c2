"""Lengths to which rows are padded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from janus_pt.packing.padded import (
    MIN_GRAPH_STEP,
    ROW_STEP,
    SHORTEST_SECTION,
    round_to_blocks,
    round_to_graph_step,
)


@given(st.integers(0, 1 << 20))
def test_lengths_for_graphs_are_at_most_an_eighth_too_long(size: int) -> None:
    length = round_to_graph_step(size)
    assert size <= length < max(SHORTEST_SECTION, size * 9 / 8) + MIN_GRAPH_STEP
    assert length % MIN_GRAPH_STEP == 0


def test_there_are_few_lengths_for_graphs() -> None:
    # From 256 to 1024 each multiple of 128; then 8 between a power of two and the next.
    assert len({round_to_graph_step(size) for size in range(1, 1 << 14)}) == 7 + 4 * 8


@given(st.integers(1, 1 << 20))
def test_a_section_has_two_blocks_or_is_empty(size: int) -> None:
    assert round_to_blocks(0) == 0
    length = round_to_blocks(size)
    assert length >= SHORTEST_SECTION and length % ROW_STEP == 0
    assert size <= length < max(SHORTEST_SECTION + 1, size + ROW_STEP)
