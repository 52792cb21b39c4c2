"""`data.micro_batch_size: "auto"`: which sizes are possible, and which is the largest that fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from janus_pt.config.reader import to_json
from janus_pt.config.schema import AUTO, Config, DataConfig
from janus_pt.parallel import groups
from janus_pt.train import micro_batch
from janus_pt.train.micro_batch import formula_peak, possible_sizes, resolve_micro_batch
from janus_pt.utils.errors import UserError

LONGEST = 64


def config(**data: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"vocab_size": 500, "hidden_size": 32, "num_attention_heads": 2},
            "data": {
                "train": [{"path": "none"}],
                "global_batch_size": 12 * LONGEST,
                "micro_batch_size": "auto",
                **data,
            },
            "run": {"output_dir": "none", "max_steps": 1},
        }
    )


def test_auto_is_read_and_written_as_auto() -> None:
    auto = config()
    assert auto.data.micro_batch_size == AUTO
    assert json.loads(to_json(auto))["data"]["micro_batch_size"] == "auto"
    assert Config.model_validate_json(to_json(auto)) == auto


@pytest.mark.parametrize("wrong", [0, -1, "Auto", 1.5, None])
def test_nothing_else_stands_for_it(wrong: Any) -> None:
    with pytest.raises(ValueError):
        DataConfig.model_validate({**config().data.model_dump(), "micro_batch_size": wrong})


def test_possible_sizes_share_the_step_among_ranks_and_hold_the_longest_sample() -> None:
    # 12 samples by tokens: with 2 ranks a rank may take them in 1, 2, 3 or 6 micro-batches.
    tokens = possible_sizes(config(), LONGEST, 2)
    assert tokens == [6 * LONGEST, 3 * LONGEST, 2 * LONGEST, 96, LONGEST]
    assert all(12 * LONGEST % size == 0 and size >= LONGEST for size in tokens)
    sequences = config(batch_unit="sequences", global_batch_size=12)
    assert possible_sizes(sequences, LONGEST, 2) == [6, 3, 2, 1]
    assert possible_sizes(sequences, LONGEST, 5) == []


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    groups.initialize()


def test_the_largest_that_fits_is_taken(one_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = possible_sizes(config(), LONGEST, 1)
    peaks = [formula_peak(micro_batch._with_size(config(), size), LONGEST) for size in sizes]
    assert peaks == sorted(peaks, reverse=True)
    for size, peak in zip(sizes, peaks, strict=True):
        available = peak / micro_batch.BY_FORMULA * 1.0001
        monkeypatch.setattr(micro_batch, "_available_memory", lambda value=available: value)
        resolved = resolve_micro_batch(config(), LONGEST, resume=False)
        taken = resolved.data.micro_batch_size
        # Sizes between two samples need as much as the smaller one.
        assert taken >= size and formula_peak(resolved, LONGEST) == peak
    monkeypatch.setattr(micro_batch, "_available_memory", lambda: peaks[-1] / 2)
    with pytest.raises(UserError, match="no micro-batch fits into"):
        resolve_micro_batch(config(), LONGEST, resume=False)


def test_a_run_that_goes_on_keeps_its_number(one_process: None, tmp_path: Path) -> None:
    run = config().run.model_copy(update={"output_dir": str(tmp_path)})
    auto = config().model_copy(update={"run": run})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step_1")
    (tmp_path / "config.json").write_text(to_json(micro_batch._with_size(auto, 2 * LONGEST)))
    assert resolve_micro_batch(auto, LONGEST, resume=True).data.micro_batch_size == 2 * LONGEST
    (tmp_path / "config.json").write_text(to_json(micro_batch._with_size(auto, 5 * LONGEST)))
    with pytest.raises(UserError, match=f"began with {5 * LONGEST}"):
        resolve_micro_batch(auto, LONGEST, resume=True)
