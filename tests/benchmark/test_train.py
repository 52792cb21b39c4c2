"""`launchers/benchmark.py`, training's part: the numbers belong together, and are of what is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from janus_pt.benchmark import growth
from janus_pt.benchmark.case import Case, make_batch, pairs_case, shape_case
from janus_pt.benchmark.growth import both_flops
from janus_pt.benchmark.loss import LossStep
from janus_pt.benchmark.timing import medians
from janus_pt.benchmark.train import TrainingStep, step_flops, yardstick_step
from tests.support.corpora import write_corpus
from tests.support.runs import run_script

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny configuration with a corpus."""
    folder = tmp_path_factory.mktemp("training")
    write_corpus(folder / "corpus", [30, 20], vocab_size=50)
    shape = dict(
        vocab_size=50, hidden_size=16, ffn_hidden_size=24, num_attention_heads=2, encoder_layers=1
    )
    data = {
        "train": [{"path": str(folder / "corpus")}],
        "global_batch_size": 96,
        "micro_batch_size": 96,
    }
    run = {"output_dir": str(folder / "run"), "max_steps": 1}
    whole = {"model": {**shape, "decoder_layers": 1, "max_positions": 40}, "data": data, "run": run}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder / "config.json"


def small(case: Case) -> Case:
    model = case.model.model_copy(update=dict(hidden_size=16, ffn_hidden_size=24, vocab_size=300))
    return replace(case, model=model, samples=3)


def test_the_numbers_of_a_step_belong_together(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("--json", tmp_path / "out.json", "--profile", tmp_path / "trace.json")
    asked = (
        "train",
        "--config",
        config,
        "--ar-stream",
        "content",
        "--repeats",
        1,
        "--threads",
        1,
        *files,
    )
    assert run_script(monkeypatch, "launchers/benchmark.py", *asked) == 0
    found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert found["ratio"] == pytest.approx(found["step_s"] / found["yardstick_step_s"])
    assert set(found["parts"]) == {"encoder", "decoder", "losses", "optimizer", "data"}
    assert 20 < found["peak_rss_mb"] < 4000 and min(found["parts"].values()) > 0
    longest = 32  # 30 tokens with bos and eos
    assert found["tokens_per_s"] * found["step_s"] == pytest.approx(3 * (longest - 1)), (
        "96 tokens hold three of them"
    )
    assert any(
        "aten::mm" in event.get("name", "")
        for event in json.loads(files[3].read_text())["traceEvents"]
    )


@pytest.mark.parametrize(("stream", "slots"), [("query", 133), ("content", 101)])
def test_the_small_shape_is_as_described(stream: Any, slots: int) -> None:
    """32 causal contents, the 33 of the other side and 18 true tokens behind masks, 18 queries; 32 more for P_AR."""
    case = shape_case("small", stream)
    batch = make_batch(case)
    assert batch.slots.table.shape[:2] == (1, 32 * slots) and batch.source.tokens.shape == (
        1,
        32 * 32,
    )
    assert {name: len(rows) for name, rows in batch.predict.items()} == {
        "ar": 1024,
        "nar": 576,
        "aux": 576,
    }
    predicting = batch.slots.table.shape[1] - batch.slots.first_predicting
    assert predicting == 32 * (32 + 2 * 18), "nothing but what predicts"
    assert case.target_tokens == 1024


def test_flops_of_a_step_by_formula_and_by_torch() -> None:
    """The formula leaves out what is small here: the losses' sums, and what attention computes and need not."""
    whole = shape_case("small")
    case = replace(whole, model=whole.model.model_copy(update=dict(vocab_size=300)), samples=16)
    step = TrainingStep(case, CPU)
    with FlopCounterMode(display=False) as counter:
        step()
    assert step_flops(case, step.batch) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("shape", ["small", "large"])
def test_fused_losses_are_the_unfused_ones_in_float32(shape: str) -> None:
    case = small(shape_case(shape))
    found = []
    for fused in (True, False):
        job = LossStep(case, CPU, fused)
        found.append([job(), job.weight.grad, *(h.grad for h in job.hidden.values())])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_losses_are_measured(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--config", config, "--repeats", 1, "--threads", 1, "--json", tmp_path / "out.json")
    assert run_script(monkeypatch, "launchers/benchmark.py", "loss", *asked) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert min(found.values()) > 0 and found["predicted_slots"] >= 3 * 31


def test_the_loader_is_measured(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--workers", 0, "--seconds", 0.2, "--json", tmp_path / "out.json")
    assert (
        run_script(monkeypatch, "launchers/benchmark.py", "loader", "--config", config, *asked) == 0
    )
    found = json.loads((tmp_path / "out.json").read_text())
    assert (
        found["tokens_per_s"] > 0
        and 0.6 < min(found["real_slots"], found["real_source_tokens"]) <= 1
        and 0.3 < found["real_scores"] <= 1
    )


def test_flops_of_the_yardstick_by_formula_and_by_torch() -> None:
    """The whole square of the causal mask is computed there, and half of it needed."""
    whole = pairs_case(300, 2, 32)
    with FlopCounterMode(display=False) as counter:
        yardstick_step(whole, CPU)()
    assert both_flops(whole)[1] == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_growth_joins_the_axes_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = growth.AXES["vocabulary"]
    tiny = vocabulary._replace(
        values=(150, 300), base=300, case=lambda v: pairs_case(int(v), 2, 8, hidden_size=16)
    )
    monkeypatch.setitem(growth.AXES, "vocabulary", tiny)
    masked = [
        {
            "value": 0.55,
            **dict.fromkeys(
                ("step_s", "yardstick_step_s", "ratio", "flops", "yardstick_flops"), 1.0
            ),
        }
    ]
    file, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    file.write_text(json.dumps({"masked": masked}))
    asked = (
        "growth",
        "--axis",
        "vocabulary",
        "--repeats",
        1,
        "--threads",
        1,
        "--json",
        file,
        "--plot",
        picture,
    )
    assert run_script(monkeypatch, "launchers/benchmark.py", *asked) == 0
    found = json.loads(file.read_text())
    assert found["masked"] == masked and [point["value"] for point in found["vocabulary"]] == [
        150,
        300,
    ]
    for point in found["vocabulary"]:
        assert point["ratio"] == pytest.approx(point["step_s"] / point["yardstick_step_s"])
    assert found["vocabulary"][0]["flops"] < found["vocabulary"][1]["flops"]
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.parametrize("content", ["{", "[1]", '{"length": [{"value": 1}]}', '{"other": []}'])
def test_growth_keeps_away_from_other_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    assert (
        run_script(
            monkeypatch, "launchers/benchmark.py", "growth", "--axis", "length", "--json", file
        )
        == 2
    )
    assert "other.json: not written by" in capsys.readouterr().err and file.read_text() == content


def test_medians_are_of_turns_without_the_warm_up() -> None:
    calls: list[str] = []
    found = medians([lambda: calls.append("a"), lambda: calls.append("b")], 3, CPU)
    assert calls == ["a", "b"] * 5 and all(0 <= seconds < 1 for seconds in found)


def test_training_is_measured_without_deepspeed() -> None:
    """Which takes hundreds of megabytes that are not the step's."""
    code = "import sys, janus_pt.benchmark.train; assert not {'deepspeed', 'megatron'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), timeout=120)


def test_a_configuration_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_script(
            monkeypatch, "launchers/benchmark.py", "train", "--config", tmp_path / "none.json"
        )
        == 2
    )
    assert "none.json: cannot be read" in capsys.readouterr().err
