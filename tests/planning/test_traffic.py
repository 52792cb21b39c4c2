"""The formula of what ranks exchange, against what torch is asked for in real steps of several processes."""

from __future__ import annotations

import pytest

from janus_pt.checks import read_config
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.planning.activations import MicroBatch
from janus_pt.planning.plan import traffic_table
from janus_pt.planning.traffic import Traffic, step_traffic
from tests.support.measured_traffic import CASES, estimate, measured, summed
from tests.support.runs import ROOT

CHECKED = [
    "DP2, ZeRO-0",
    "DP2, ZeRO-1, bfloat16",
    "DP2, ZeRO-1, reduced in bfloat16",
    "DP2, ZeRO-2",
    "DP2, ZeRO-3, nothing kept",
    "TP2, activation checkpointing",
    "TP2, attention recomputed",
    "TP2, sequence parallel",
    "PP3",
    "TP2 x PP2, sequence parallel, bfloat16",
    "TP2 x PP2, bfloat16",
]
"""The others take as long and show no other part of the formula."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_the_formula_is_what_is_exchanged(name: str) -> None:
    """To the byte, of every axis and kind of collective; and as often, but for ZeRO-3's gathers of single weights."""
    for traffic, (payload, calls) in zip(estimate(CASES[name]), measured(CASES[name]), strict=True):
        expected, expected_calls = summed(traffic)
        assert expected == payload
        if CASES[name].get("zero") != 3:
            assert expected_calls == calls


def traffic_of(*overrides: str, ranks: int) -> list[list[Traffic]]:
    config = read_config(str(ROOT / "configs" / "janus_xl.json"), overrides, world_size=ranks)
    sizes = sample_sizes(config.model, config.objective, 512)
    return step_traffic(
        config, ranks // config.parallel.model_parallel_size, MicroBatch(3, sizes, on_cpu=False)
    )


def test_a_ring_sends_what_it_must() -> None:
    """Of N bytes among n ranks (n - 1) / n N to gather or to scatter, twice that to reduce for all."""
    sent = {
        kind: Traffic("data", "", kind, 4, 100.0, 1).sent
        for kind in ("all-reduce", "all-gather", "send")
    }
    assert sent == {"all-reduce": 150, "all-gather": 75, "send": 100}


def test_what_is_handed_on_is_handed_back() -> None:
    """The last stage sends back the states that it got, others do both."""
    sent = [
        {t.what: t.sent for t in stage if t.axis == "pipeline"} for stage in traffic_of(ranks=16)
    ]
    first, *between, last = (stage["states"] for stage in sent)
    assert between == [2 * first] * 2 and first == last
    assert ["table" in stage for stage in sent] == [True, False, False, True]


def test_more_ranks_and_micro_batches() -> None:
    """The data axis alone knows how many ranks share the state; ZeRO-2 and 3 pay for every micro-batch."""
    single = ("parallel.pipeline_parallel_size=1",)
    found = {}
    for stage in (1, 2, 3):
        for ranks in (32, 64):
            (traffic,) = traffic_of(*single, f"parallel.zero_stage={stage}", ranks=ranks)
            found[stage, ranks] = {t.what: t.payload for t in traffic}
    assert found[1, 32]["gradients"] == found[1, 64]["gradients"]
    assert found[1, 32]["layers"] == 2 * found[1, 64]["layers"], "half as many micro-batches a rank"
    assert found[2, 32]["gradients"] == 16 * found[1, 32]["gradients"], (
        "128 micro-batches, 8 data-parallel ranks"
    )
    assert found[1, 32]["weights"] < found[3, 32]["weights"] / 16, (
        "gathered twice where they do not stay"
    )


def test_the_table_says_who_sends_what() -> None:
    header, *rows = traffic_table(traffic_of(ranks=64)).splitlines()
    assert len(rows) == 4 and "(GB)" in header
    for column in (
        "data gradients",
        "data weights",
        "tensor layers",
        "tensor losses",
        "pipeline states",
    ):
        assert column in header
