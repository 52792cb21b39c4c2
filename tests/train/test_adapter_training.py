"""Adapters, freezing and the layers' learning rates in real runs: on every layout, resumed, continued elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.export.adapters import load_pretrained
from janus_pt.export.folder import save_export
from janus_pt.model.adapters import is_adapter, trained_with
from janus_pt.model.initialize import initialize_weights
from janus_pt.model.transformer import JanusTransformer
from tests.support.layouts import SAVED, STEPS, Comparison, Layout, difference, same_bits
from tests.support.models import as_source, random_sources, tokenizer_bytes
from tests.support.runs import VOCAB, launch, losses

pytestmark = pytest.mark.slow

ONE, TENSOR = Layout("one process"), Layout("TP2", 2, tensor=2)
ZERO2, ZERO3 = Layout("DP2, ZeRO-2", 2, stage=2), Layout("DP2, ZeRO-3", 2, stage=3)
ZERO0, BFLOAT16 = Layout("ZeRO-0", stage=0), Layout("DP2, bfloat16", 2, dtype="bfloat16")
FLOAT32 = 1e-5
LORA = {"r": 2, "lora_alpha": 8.0, "target_modules": ["q_proj", "out_proj", "fc1", "fc2"]}
BOTTLENECK = {"kind": "bottleneck", "r": 2}


def comparison(folder: Path, **sections: Any) -> Comparison:
    """Runs from a random export, with more `sections` of the configuration."""
    folder.mkdir(exist_ok=True)
    runs = Comparison(folder)
    config = json.loads(runs.config.read_text())
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    shape = ModelConfig.model_validate(config["model"])
    (folder / "tokenizer.model").write_bytes(tokenizer_bytes(VOCAB))
    model = JanusTransformer(shape)
    initialize_weights(model, 3)
    save_export(folder / "base", model.state_dict(), shape, folder / "tokenizer.model")
    config["run"]["init_from"] = str(folder / "base")
    runs.config.write_text(json.dumps(config))
    return runs


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return comparison(tmp_path_factory.mktemp("lora"), adapter=LORA)


def content(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def test_only_adapters_learn_and_only_they_are_saved(lora: Comparison) -> None:
    run = lora.run(ONE)
    numbers = losses(run / "metrics.jsonl")
    assert numbers[STEPS, "valid/loss/total"] < numbers[0, "valid/loss/total"]
    base = content(lora.folder, "base/model.safetensors")
    merged = content(run, "export/model.safetensors")
    adapters = content(run, "adapter/adapter_model.safetensors")
    targets = tuple(f"{name}.weight" for name in LORA["target_modules"])
    for name, weight in merged.items():
        changed = name.endswith(targets) and "layers." in name
        assert torch.equal(weight, base[name]) != changed or name == "embed_length.weight", name
    assert all(trained_with(AdapterConfig(), name) for name in adapters)
    assert all(tensor.abs().max() > 0 for name, tensor in adapters.items() if is_adapter(name))
    saved = torch.load(
        run / f"checkpoints/step_{STEPS}/mp_rank_00_model_states.pt", weights_only=False
    )["module"]
    assert {name.removeprefix("model.") for name in saved} == set(adapters)
    trained = sum(tensor.numel() for tensor in adapters.values())
    optimizer = run / f"checkpoints/step_{STEPS}/zero_pp_rank_0_mp_rank_00_optim_states.pt"
    assert (
        optimizer.stat().st_size < 12 * trained + 100_000
    )  # float32 copy and two moments, and their names


@pytest.mark.parametrize("layout", [TENSOR, ZERO2, ZERO3, ZERO0], ids=lambda layout: layout.name)
def test_a_layout_computes_what_one_process_does(lora: Comparison, layout: Layout) -> None:
    assert difference(lora.run(layout), lora.run(ONE)) < FLOAT32
    assert same_bits(lora.run(layout, layout), lora.run(layout))


def test_a_checkpoint_goes_on_on_another_layout(lora: Comparison) -> None:
    for origin, layout in ((TENSOR, ONE), (ZERO3, TENSOR), (TENSOR, ZERO3)):
        assert difference(lora.run(layout, origin), lora.run(origin), SAVED) < FLOAT32


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_two_percent_trained_and_five_percent_saved(tmp_path: Path) -> None:
    """The defaults on a model of 5.6 million parameters, against the same run without adapters."""
    shape = {"hidden_size": 256, "ffn_hidden_size": 1024, "num_attention_heads": 4}
    shape |= {"encoder_layers": 3, "decoder_layers": 3}
    steps = {"max_steps": 2, "eval_every": 0}
    lora, full = (
        comparison(
            tmp_path / name,
            model=shape,
            run=steps,
            optimizer={"lr": 1e-2},
            schedule={"warmup_steps": 0},
            **adapter,
        )
        for name, adapter in (("lora", {"adapter": {}}), ("full", {}))
    )
    run, other = lora.run(TENSOR), full.run(ONE)
    names = [
        load_file(run / name).items()
        for name in ("adapter/adapter_model.safetensors", "export/model.safetensors")
    ]
    trained, parameters = (sum(tensor.numel() for _, tensor in items) for items in names)
    assert 0 < trained <= 0.02 * parameters
    assert size(run / "adapter") <= 0.05 * size(run / "export")
    assert size(run / "checkpoints/step_2") <= 0.05 * size(other / "checkpoints/step_2")
    merged, unmerged, base = (
        load_pretrained(folder, merge=False).model()
        for folder in (run / "export", run / "adapter", tmp_path / "lora/base")
    )
    source = as_source(random_sources(0, 4))
    ours, theirs, before = (
        torch.softmax(m.logits(m.encode(source)), -1) for m in (merged, unmerged, base)
    )
    assert (ours - theirs).abs().max() < 1e-6 < 1e-5 < (ours - before).abs().max()


def test_bfloat16_resumes(lora: Comparison) -> None:
    assert difference(lora.run(BFLOAT16), lora.run(ONE)) < 2e-2
    assert same_bits(lora.run(BFLOAT16, BFLOAT16), lora.run(BFLOAT16))


def test_freezing_and_slower_layers_on_any_layout(tmp_path: Path) -> None:
    """Frozen weights stay those of the base, low layers move less, resuming and changing the layout work."""
    changes = {
        "freeze": ["encoder", "embed_tokens"],
        "layer_lr_decay": 0.5,
        "lr": 1e-3,
        "weight_decay": 0.0,
    }
    runs = comparison(tmp_path, optimizer=changes)
    base, tuned = (
        load_file(f / "model.safetensors") for f in (tmp_path / "base", runs.run(ONE) / "export")
    )
    moved = {name: float((tuned[name] - base[name]).abs().max()) for name in base}
    still = ("encoder.", "embed_tokens.", "embed_length.")  # pretraining does not train the last
    frozen = {name for name in base if name.startswith(still)}
    assert {name for name in base if moved[name] == 0.0} == frozen
    top, below = (max(moved[n] for n in base if f"decoder.layers.{i}.fc1.w" in n) for i in (1, 0))
    assert 1.5 < top / below < 2.5
    for layout in (TENSOR, ZERO3):
        assert difference(runs.run(layout), runs.run(ONE)) < FLOAT32
        assert same_bits(runs.run(layout, layout), runs.run(layout))


def test_bottlenecks_train_and_resume(tmp_path: Path) -> None:
    runs = comparison(tmp_path, adapter=BOTTLENECK)
    one, two, again = runs.run(ONE), runs.run(TENSOR), runs.run(TENSOR, TENSOR)
    ours, theirs, third = (
        load_file(run / "adapter/adapter_model.safetensors") for run in (two, one, again)
    )
    assert all(torch.equal(third[name], ours[name]) for name in ours)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
    assert not (one / "export").exists()
    config = ["--config", str(runs.config), "--resume", "auto", "--set", f"run.output_dir={one}"]
    other = launch("pretrain.py", *config, "--set", "adapter.r=3")
    assert other.returncode == 2 and "adapter.r (was 2, is 3)" in other.stderr
