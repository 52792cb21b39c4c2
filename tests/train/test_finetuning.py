"""From a pretrained export to a fine-tuned one that decodes both ways, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.corpora import write_corpus
from tests.support.models import tokenizer_bytes
from tests.support.runs import ROOT, VOCAB, environment, launch, losses, write_run_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    done = launch("pretrain.py", "--config", str(write_run_config(folder, run__max_steps=5)))
    assert done.returncode == 0, done.stderr
    return folder / "run" / "export"


def finetuning_config(folder: Path, **changes: object) -> Path:
    """Pairs of random tokens, and a configuration without a model: its shape is the export's."""
    fields = ("source", "target")
    for name, size in (("pairs", 60), ("pairs_valid", 10)):
        write_corpus(
            folder / name,
            [size],
            fields,
            max_tokens=10,
            vocab_size=VOCAB,
            tokenizer=tokenizer_bytes(VOCAB),
        )
    path = write_run_config(
        folder,
        objective__recipe="translation",
        data__train=[{"path": str(folder / "pairs")}],
        data__valid=str(folder / "pairs_valid"),
        **changes,
    )
    config = json.loads(path.read_text())
    config["model"] = {"dropout": 0.2}
    path.write_text(json.dumps(config, indent=1))
    return path


def test_finetune_and_decode(pretrained: Path, tmp_path: Path) -> None:
    config = finetuning_config(tmp_path, run__init_from=str(pretrained))
    done = launch("finetune.py", "--config", str(config), ranks=2)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    resolved = json.loads((run / "config.json").read_text())["model"]
    assert resolved["hidden_size"] == 32 and resolved["dropout"] == 0.2
    numbers = losses(run / "metrics.jsonl")
    for stream in ("ar", "nar", "aux", "length"):
        assert numbers[20, f"valid/loss/{stream}"] < numbers[0, f"valid/loss/{stream}"]
    text = "the slot reads the query\n\na mask\n"
    for options in (
        ["--mode", "ar", "--num-beams", "3"],
        ["--mode", "nar", "--iterations", "3", "--length-beam", "2"],
    ):
        call = [
            sys.executable,
            str(ROOT / "launchers/generate.py"),
            "--model",
            str(run / "export"),
            *options,
        ]
        decoded = subprocess.run(
            call, input=text, capture_output=True, text=True, timeout=120, env=environment()
        )
        assert decoded.returncode == 0 and len(decoded.stdout.splitlines()) == 3, decoded.stderr


def test_adapters_chosen_by_a_metric_from_the_command_line(
    pretrained: Path, tmp_path: Path
) -> None:
    """As docs/guides/finetuning.md shows it: the adapters of the best validation, decoded without being merged."""
    texts = "the slot reads the query\na mask\nthe mask reads\n"
    for name in ("dev.src", "dev.tgt"):
        (tmp_path / name).write_text(texts)
    config = finetuning_config(
        tmp_path, run__init_from=str(pretrained), run__eval_every=5, run__patience=2
    )
    keys = {
        "kind": "lora",
        "r": 4,
        "lora_alpha": 16,
        "target_modules": '["decoder.*.q_proj", "fc1"]',
    }
    validation = {
        "task": "nmt",
        "data": tmp_path,
        "metric": "chrf",
        "options": '{"num_beams": 2}',
        "sentences": 2,
    }
    changes = [f"adapter.{key}={value}" for key, value in keys.items()]
    changes += [f"validation.{key}={value}" for key, value in validation.items()]
    done = launch(
        "finetune.py", "--config", str(config), *(part for c in changes for part in ("--set", c))
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    numbers = {
        step: value
        for (step, key), value in losses(run / "metrics.jsonl").items()
        if key == "valid/chrf"
    }
    assert numbers and all(0 <= value <= 100 for value in numbers.values())
    outputs = []
    for folder in ("adapter", "export"):
        call = [
            sys.executable,
            str(ROOT / "launchers/generate.py"),
            "--model",
            str(run / folder),
            "--mode",
            "ar",
        ]
        decoded = subprocess.run(
            call, input=texts, capture_output=True, text=True, timeout=120, env=environment()
        )
        assert decoded.returncode == 0, decoded.stderr
        outputs.append(decoded.stdout)
    assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == 3


def test_it_starts_from_the_export(pretrained: Path, tmp_path: Path) -> None:
    """With a learning rate of almost nothing the export is what it started from."""
    config = finetuning_config(
        tmp_path, run__init_from=str(pretrained), run__max_steps=1, run__eval_every=0, optimizer__lr=1e-30,
        optimizer__weight_decay=0.0, schedule__warmup_steps=0,
    )  # fmt: skip
    done = launch("finetune.py", "--config", str(config))
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        load_file(tmp_path / "run/export/model.safetensors"),
        load_file(pretrained / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_model_of_another_shape_is_refused(pretrained: Path, tmp_path: Path) -> None:
    config = finetuning_config(tmp_path, run__init_from=str(pretrained))
    done = launch("finetune.py", "--config", str(config), "--set", "model.hidden_size=64")
    assert done.returncode == 2 and "model.hidden_size (there 32, here 64)" in done.stderr


def test_torchrun_starts_it_too(tmp_path: Path) -> None:
    config = write_run_config(tmp_path, run__max_steps=6)
    start = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2"]
    call = [*start, str(ROOT / "launchers/pretrain.py"), "--config", str(config)]
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=240, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/export/model.safetensors").exists()
