"""`launchers/benchmark.py layouts`: the time of a step on a cluster by formula, against the same by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from janus_pt.checks import read_config
from janus_pt.objectives.expected_sizes import sample_sizes
from janus_pt.planning.layouts import Cluster
from janus_pt.planning.parameters import model_parameters
from janus_pt.planning.plan import bubble, step_flops
from tests.support.runs import ROOT, run_script

LARGE = str(ROOT / "configs" / "janus_large.json")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All layouts of 64 GPUs."""
    file = tmp_path_factory.mktemp("scaling") / "out.json"
    asked = ("--config", LARGE, "--length", 512, "--best", 99, "--json", file, "--world-size", 64)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_script(monkeypatch, "launchers/benchmark.py", "layouts", *asked) == 0
    steps: list[dict[str, Any]] = json.loads(file.read_text())
    return steps


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    cluster = Cluster(per_host=8, inside=300.0, outside=30.0)
    assert cluster.bandwidth(8, 1) == cluster.bandwidth(2, 4) == 300
    assert [cluster.bandwidth(16, stride) for stride in (1, 2, 4, 8, 16)] == [240, 120, 60, 30, 30]


def test_the_parts_are_the_step(found: list[dict[str, Any]]) -> None:
    parts = ("compute_s", "waiting_s", "tensor_s", "pipeline_s", "data_s", "launching_s")
    for step in found:
        assert step["tensor"] * step["pipeline"] * step["data"] == 64
        assert step["samples"] * step["micro_batches"] * step["data"] == 384, (
            "of 512 tokens in a step of 196,608"
        )
        assert step["memory"] <= Cluster.memory and sum(
            step[part] for part in parts
        ) == pytest.approx(step["step_s"])
        assert (
            step["waiting_s"]
            >= bubble(step["pipeline"], step["micro_batches"]) * step["compute_s"] - 1e-9
        )
        assert step["zero"] == 1 or step["pipeline"] == 1
        assert step["host_s"] <= step["step_s"] * (1 + 1e-9)
        assert step["launching_s"] == 0 or step["host_s"] == pytest.approx(step["step_s"])
        assert not step["graphs"] or step["tensor"] * step["pipeline"] == step["zero"] == 1
    assert [step["step_s"] for step in found] == sorted(step["step_s"] for step in found)
    assert (
        len({(step["tensor"], step["pipeline"], step["zero"]) for step in found}) == len(found) > 8
    )


def test_a_step_by_hand(found: list[dict[str, Any]]) -> None:
    """64 data-parallel ranks: all of InfiniBand's cards of a host would be faster than NVLink, which so decides.
    Gradients of four bytes go once around the ring, with graphs as two flat tensors; weights of two bytes once, in two
    groups. One by one the host would need longer to launch the step than the device for it."""
    step = next(s for s in found if (s["tensor"], s["pipeline"], s["zero"]) == (1, 1, 1))
    model, objective = (config := read_config(LARGE)).model, config.objective
    computing = step_flops(model, 384, sample_sizes(model, objective, 512)) / 64 / (0.5 * 989e12)
    size = model_parameters(model)
    calls = 2 + 2
    assert step["graphs"] and step["launching_s"] == 0 and step["samples"] == 2
    exchange = (4 + 2) * size * 63 / 64 / (0.7 * 450e9) + 20e-6 * calls
    assert step["compute_s"] == pytest.approx(computing) and step["waiting_s"] == 0
    assert step["data_s"] == pytest.approx(exchange)
    assert step["mfu"] == pytest.approx(0.5 * computing / step["step_s"])


def test_where_none_fits_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("layouts", "--config", LARGE, "--length", 512, "--world-size", 7)
    assert run_script(monkeypatch, "launchers/benchmark.py", *asked) == 2
    assert "no layout of 7 GPUs" in capsys.readouterr().err
