"""`mode="auto"`: what it writes is greedy search's, and what trying costs is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_pt.generate.auto import AutoOptions, Record, record_of
from janus_pt.generate.autoregressive import AutoregressiveOptions, autoregressive
from tests.support.models import as_source, random_sources, tiny_model


@settings(max_examples=60, deadline=None)
@given(st.floats(0.3, 2.0), st.integers(1, 400))
def test_trying_costs_little_and_finds_the_faster_way(ratio: float, batches: int) -> None:
    """Batches of ten tokens and a second by greedy search, of `ratio` seconds by speculation."""
    record, seconds = Record(), {"greedy": 1.0, "speculative": ratio}
    chosen = []
    for _ in range(batches):
        way = record.choose()
        record.add(way, seconds[way], 10)
        chosen.append(way)
    spent = sum(seconds[way] for way in chosen)
    assert spent <= 1.03 * batches
    if ratio < 0.7 and batches > 100:
        # It is first tried after 50 seconds, 2 % of which are the second that it may lose.
        assert chosen[60:].count("speculative") > 0.9 * len(chosen[60:])


@pytest.mark.parametrize("way", ["greedy", "speculative"])
def test_the_output_is_that_of_greedy_search(way: str) -> None:
    model, sources = tiny_model(31), as_source(random_sources(31, 6))
    expected = autoregressive(model, sources, AutoregressiveOptions(max_length=10))
    record = record_of(model, 6)
    # As if both had been measured, and the other way were far slower.
    record.rates = {"greedy": 1.0, "speculative": 1.0, way: 1e-9}
    record.newest = 1.0
    found = AutoOptions(max_length=10).decode(model, sources)
    assert (found.drafted is not None) == (way == "speculative")
    for row in range(6):
        length = int(expected.lengths[row, 0])
        assert int(found.lengths[row, 0]) == length
        assert found.tokens[row, 0, :length].tolist() == expected.tokens[row, 0, :length].tolist()


def test_sizes_between_powers_of_two_share_a_record() -> None:
    model = tiny_model(32)
    assert record_of(model, 5) is record_of(model, 7) is not record_of(model, 8)
