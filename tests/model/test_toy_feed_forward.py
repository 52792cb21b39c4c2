"""A new feed-forward network is one class and one row: a toy one goes through all of the program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from janus_pt.config.schema import AdapterConfig, ObjectiveConfig
from janus_pt.generate.modes import check_options
from janus_pt.inference.janus_model import JanusModel
from janus_pt.model.adapters import target_layers
from janus_pt.model.feed_forward import FEED_FORWARDS
from janus_pt.model.layer_factory import partition_dim
from janus_pt.model.meta import build_on_meta
from janus_pt.model.transformer import JanusTransformer
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.packing.batch import Batch, collate
from tests.support import toy_feed_forward
from tests.support.examples import make_example_of
from tests.support.layouts import difference
from tests.support.models import as_source, random_sources, tiny_model
from tests.support.ranks import run_ranks
from tests.support.runs import run_script, write_run_config


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    row = toy_feed_forward.ShortcutFeedForward()
    monkeypatch.setitem(FEED_FORWARDS, toy_feed_forward.NAME, row)


def batch() -> Batch:
    source, target = np.arange(5, 12), np.array([1, *range(10, 18), 2])
    return collate([make_example_of("janus", source, target, np.array([2, 5]))])


def losses(model: JanusTransformer, steps: int) -> list[float]:
    """Of some steps of plain gradient descent on one batch."""
    loss = ObjectiveLoss(ObjectiveConfig.model_validate({"recipe": "translation"}), VocabShard(24))
    module, made = TrainingModule(model, loss), batch()
    coefficients = torch.full((len(loss.names),), 0.1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    for _ in range(steps):
        total, _ = module(made, coefficients)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        found.append(float(total.detach()))
    return found


def test_a_step_trains_all_of_its_projections() -> None:
    model = tiny_model(0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found = losses(model, 3)
    assert found[2] < found[0]
    for name, parameter in model.named_parameters():
        if "shortcut" in name:
            assert not torch.equal(parameter, before[name]), name


def test_its_marks_tell_how_it_is_sharded_and_adapted() -> None:
    model = build_on_meta(tiny_model().config)
    weights = dict(model.named_parameters())
    assert partition_dim(weights["encoder.layers.0.shortcut.weight"]) == 0
    layers = target_layers(AdapterConfig(target_modules=("shortcut",)), model)
    assert list(layers) == [
        "encoder.layers.0.shortcut",
        "decoder.layers.0.shortcut",
        "decoder.layers.1.shortcut",
    ]


@pytest.mark.parametrize("mode", ["ar", "nar", "speculative"])
def test_it_decodes(mode: str) -> None:
    model, sources = tiny_model(0), random_sources(0, 2)
    written = check_options(mode).decode(model, as_source(sources))
    assert len(written.tokens) == 2


def test_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run_config(tmp_path)
    assert run_script(monkeypatch, "launchers/pretrain.py", "--config", config, "--dry-run") == 0
    assert "memory" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_a_pipeline_of_two_stages_and_decoding(tmp_path: Path) -> None:
    config = write_run_config(
        tmp_path,
        data__num_workers=0,
        schedule__warmup_steps=1,
        run__max_steps=2,
        run__eval_every=2,
    )
    for name, layout, ranks in (
        ("one", "pipeline_parallel_size=1", 1),
        ("stages", "pipeline_parallel_size=2", 2),
        ("shards", "tensor_parallel_size=2", 2),
    ):
        settings = [f"run.output_dir={tmp_path / name}", f"parallel.{layout}"]
        run_ranks(toy_feed_forward.train, ranks, str(config), settings, False)
    assert difference(tmp_path / "stages", tmp_path / "one") < 1e-5
    assert difference(tmp_path / "shards", tmp_path / "one") < 1e-5
    model = JanusModel.from_pretrained(tmp_path / "one" / "export")
    assert len(model.generate(["the slot reads the query"], mode="ar")) == 1
