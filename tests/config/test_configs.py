"""Every configuration that is shipped loads and plans; the pretraining ones hold the recipe, and train when shrunk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from janus_pt.checks import read_config
from janus_pt.config.schema import ModelConfig
from janus_pt.config.shipped import config_path as path_of
from janus_pt.config.shipped import shipped_configs
from janus_pt.export.folder import save_export
from janus_pt.model.transformer import JanusTransformer
from janus_pt.planning.parameters import model_parameters
from janus_pt.planning.plan import print_plan
from janus_pt.utils.errors import UserError
from tests.support.corpora import write_corpus
from tests.support.models import tokenizer_bytes
from tests.support.runs import VOCAB, launch, read_records

FOLDER = Path(__file__).resolve().parents[2] / "configs"
SCALES = FOLDER.parent / "janus_pt" / "claims" / "scales"
NAMES = shipped_configs()
CONFIGS = sorted([*(FOLDER / f"{name}.json" for name in NAMES), *SCALES.glob("*.json")])
PRETRAINING = {
    "janus_base": (6, 768, 12, 3072, 139e6),
    "janus_large": (12, 1024, 16, 4096, 406e6),
    "janus_xl": (24, 2048, 32, 8192, 2.93e9),
}
SHRUNK = {
    "model.vocab_size": VOCAB,
    "model.hidden_size": 32,
    "model.num_attention_heads": 4,
    "model.ffn_hidden_size": 64,
    "model.encoder_layers": 2,
    "model.decoder_layers": 2,
    "model.max_positions": 24,
    "data.global_batch_size": 256,
    "data.micro_batch_size": 32,
    "data.window": 40,
    "schedule.warmup_steps": 2,
    "optimizer.lr": 5e-3,
    "run.max_steps": 6,
    "run.log_every": 1,
    "run.eval_every": 6,
    "parallel.pipeline_parallel_size": 1,
    "parallel.tensor_parallel_size": 1,
    "tracking.enabled": "false",
}


def config_path(name: str) -> Path:
    return FOLDER / f"{name}.json"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_loads_and_plans(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = []
    if (
        '"vocab_size"' not in path.read_text()
    ):  # fine-tuning: the model's shape comes from an export
        shape = ModelConfig(
            vocab_size=300, hidden_size=16, ffn_hidden_size=16, num_attention_heads=2
        )
        (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes(300))
        save_export(
            tmp_path / "export",
            JanusTransformer(shape).state_dict(),
            shape,
            tmp_path / "tokenizer.model",
        )
        overrides = [f"run.init_from={tmp_path / 'export'}"]
    ranks = 2 * read_config(path, overrides).parallel.model_parallel_size
    config = read_config(path, overrides, world_size=ranks)
    print_plan(config, ranks)
    assert f"{model_parameters(config.model):,}" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_recipe(name: str) -> None:
    """The authors' hyper-parameters, on models of the sizes they are said to have."""
    config = read_config(config_path(name), world_size=64 if name == "janus_xl" else 8)
    layers, hidden, heads, ffn, parameters = PRETRAINING[name]
    model, optimizer, schedule = config.model, config.optimizer, config.schedule
    assert (model.encoder_layers, model.decoder_layers) == (layers, layers)
    assert (model.hidden_size, model.num_attention_heads, model.ffn_hidden_size) == (
        hidden,
        heads,
        ffn,
    )
    assert model_parameters(model) == pytest.approx(parameters, rel=0.01)
    assert config.data.global_batch_size == 384 * 512
    assert (optimizer.lr, optimizer.betas, optimizer.eps) == (1e-4, (0.9, 0.98), 1e-6)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.01, 0.0)
    assert (schedule.kind, schedule.warmup_steps, schedule.power, schedule.final_lr) == (
        "polynomial",
        10_000,
        1.0,
        0.0,
    )
    assert config.run.max_steps == 1_000_000
    # The recipe's attention dropout of 0.1 would keep FlexAttention out.
    assert (model.dropout, model.activation_dropout, model.attention_dropout) == (0.1, 0.0, 0.0)
    assert config.objective.recipe == "pretraining" and config.objective.masking.ratio == 0.3


@pytest.mark.parametrize("size", ["base", "large"])
def test_bart_janus_is_the_same_recipe_from_bart(size: str, tmp_path: Path) -> None:
    """The paper's: hyper-parameters of `janus_base`, weights of BART, sources rotated in every second sample."""
    shape = ModelConfig(vocab_size=300, hidden_size=16, ffn_hidden_size=16, num_attention_heads=2)
    export = tmp_path / "export"
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes(300))
    state = JanusTransformer(shape).state_dict()
    save_export(export, state, shape, tmp_path / "tokenizer.model")
    path = config_path(f"bart_janus_{size}")
    found = read_config(path, [f"run.init_from={export}"], world_size=8)
    same = read_config(config_path(f"janus_{size}"), world_size=8)
    for section in ("data", "optimizer", "schedule", "precision"):
        assert getattr(found, section) == getattr(same, section)
    assert found.model.hidden_size == 16
    assert found.model.attention_dropout == same.model.attention_dropout
    assert found.objective.masking.rotate_probability == 0.5
    assert found.run.init_from and found.run.max_steps == same.run.max_steps
    with pytest.raises(UserError, match="no exported model here"):
        read_config(path, world_size=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tensor", "pipeline"),
    [("janus_base", 1, 1), ("janus_large", 1, 1), ("janus_xl", 2, 2)],
)
def test_it_trains_when_shrunk(tmp_path: Path, name: str, tensor: int, pipeline: int) -> None:
    """All but sizes, rate and paths as shipped: optimizer, schedule, precision, dropout, objective."""
    for corpus, size in (("corpus", 80), ("valid", 12)):
        write_corpus(
            tmp_path / corpus,
            [size],
            max_tokens=14,
            vocab_size=VOCAB,
            tokenizer=tokenizer_bytes(VOCAB),
        )
    values = {
        **SHRUNK,
        "data.train": json.dumps([{"path": str(tmp_path / "corpus")}]),
        "data.valid": tmp_path / "valid",
        "run.output_dir": tmp_path / "run",
        "parallel.tensor_parallel_size": tensor,
        "parallel.pipeline_parallel_size": pipeline,
    }
    overrides = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    done = launch(
        "pretrain.py", "--config", str(config_path(name)), *overrides, ranks=tensor * pipeline
    )
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if "grad_norm" in record] == [1, 2, 3, 4, 5, 6]
    valid = [record["valid/loss/total"] for record in records if "valid/loss/total" in record]
    assert len(valid) == 2 and valid[-1] < 0.985 * valid[0]
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_is_found_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of(name).samefile(FOLDER / f"{name}.json")
    # A run's folder may have the name; a file of the name is the user's own.
    Path(name).mkdir(parents=True)
    assert path_of(name).samefile(FOLDER / f"{name}.json")
    Path(name).rmdir()
    Path(name).touch()
    assert path_of(name) == Path(name)


def test_a_misspelt_name_is_suggested() -> None:
    with pytest.raises(UserError, match=r"janus_tny: no such file.*did you mean janus_tiny\?"):
        read_config("janus_tny")
