"""Every configuration that is shipped loads, and its plan counts the model's parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tokenizer_bytes

from janus_pt.config import ModelConfig
from janus_pt.config_file import read_config
from janus_pt.export import save_export
from janus_pt.model.janus import JanusTransformer
from janus_pt.train.plan import count_parameters, print_plan

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_loads_and_plans(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = []
    if '"vocab_size"' not in path.read_text():  # fine-tuning: the model's shape comes from an export
        shape = ModelConfig(vocab_size=300, hidden_size=16, ffn_hidden_size=16, num_attention_heads=2)
        (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes(300))
        save_export(tmp_path / "export", JanusTransformer(shape).state_dict(), shape, tmp_path / "tokenizer.model")
        overrides = [f"run.init_from={tmp_path / 'export'}"]
    config = read_config(path, overrides, world_size=2)
    print_plan(config, world_size=2)
    assert f"{count_parameters(config):,}" in capsys.readouterr().out


def test_the_plan_counts_what_the_model_has() -> None:
    config = read_config(CONFIGS[0].with_name("janus_tiny.json"), ["model.positions=sinusoidal"])
    assert count_parameters(config) == sum(p.numel() for p in JanusTransformer(config.model).parameters())
