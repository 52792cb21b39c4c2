"""A BART that has learnt a task in transformers goes on as JANUS, on one process and on two."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from janus_pt.export.from_huggingface import convert_huggingface
from janus_pt.inference.janus_model import JanusModel
from tests.support.huggingface import SIZES
from tests.support.layouts import Layout, numbers, train
from tests.support.ranks import run_ranks
from tests.support.runs import losses, run_script
from tests.tokenizer.texts import WORDS, bart_json

pytestmark = pytest.mark.slow

STEPS = 300
COMPARED = 20
"""Steps of which the numbers are compared with those of other layouts."""
WHOLE = Layout("one process")
"""Trains for all steps."""
OTHERS = [Layout("TP2", 2, tensor=2), Layout("PP2", 2, pipeline=2)]


def pairs(seed: int, count: int) -> list[tuple[str, str]]:
    """Sentences, and the same with every word replaced by its neighbour in the list."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        words = [rng.randrange(len(WORDS)) for _ in range(rng.randrange(2, 7))]
        replaced = [WORDS[(word + 1) % len(WORDS)] for word in words]
        made.append((" ".join(WORDS[word] for word in words), " ".join(replaced)))
    return made


def batch(tokenizer: Any, some: list[tuple[str, str]]) -> dict[str, Tensor]:
    """What transformers trains on."""
    sources, targets = zip(*some, strict=True)
    made = tokenizer(list(sources), padding=True, return_tensors="pt")
    labels = tokenizer(list(targets), padding=True, return_tensors="pt")["input_ids"]
    labels[labels == tokenizer.pad_token_id] = -100
    return {**made, "labels": labels}


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BART, trained until it mostly knows the task, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bart")
    (folder / "tokenizer.json").write_bytes(bart_json(450))
    names = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    settings = {"tokenizer_class": "BartTokenizer", **names, "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    sizes = SIZES | dict(vocab_size=450, d_model=64, max_position_embeddings=64, init_std=0.1)
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, dropout=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    examples = pairs(1, 32 * 400)
    for first in range(0, len(examples), 32):
        loss = model(**batch(tokenizer, examples[first : first + 32])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.forced_bos_token_id = 0
    model.eval().save_pretrained(folder)
    return folder


def their_loss(folder: Path, some: list[tuple[str, str]]) -> float:
    """Mean cross-entropy of the target's tokens, bos and eos counted, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).double()
    with torch.inference_mode():
        return float(model(**batch(tokenizer, some)).loss)


def test_it_learns_p_nar_and_keeps_p_ar(
    bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_huggingface(bart, tmp_path / "start")
    valid = pairs(2, 64)
    for name, some in (("train", pairs(3, 4000)), ("valid", valid)):
        for side, column in (("source", 0), ("target", 1)):
            lines = [pair[column] for pair in some]
            (tmp_path / f"{name}.{side}").write_text("\n".join(lines) + "\n")
        arguments = [f"--{side}={tmp_path / name}.{side}" for side in ("source", "target")]
        tokenizer = tmp_path / "start/tokenizer.json"
        done = run_script(
            monkeypatch,
            "data_prep/build_shards.py",
            *arguments,
            f"--tokenizer={tokenizer}",
            f"--output={tmp_path / name}",
        )
        assert done == 0
    config = {
        "model": {"dropout": 0.0},
        "objective": {"recipe": "translation", "label_smoothing": 0.0},
        "data": {
            "train": [{"path": str(tmp_path / "train")}],
            "valid": str(tmp_path / "valid"),
            "global_batch_size": 512,
            "micro_batch_size": 512,
            "num_workers": 0,
        },
        "optimizer": {"lr": 2e-3},
        "schedule": {"kind": "inverse_sqrt", "warmup_steps": COMPARED},
        "tracking": {"enabled": False},
        "run": {
            "init_from": str(tmp_path / "start"),
            "output_dir": str(tmp_path / "run"),
            "max_steps": STEPS,
            "log_every": 1,
            "eval_every": STEPS,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Machines that test are often busy.
    monkeypatch.setattr("tests.support.ranks.TIMEOUT_S", 600)
    for layout in (WHOLE, *OTHERS):
        settings = [*layout.settings(), f"run.output_dir={tmp_path / layout.name}"]
        if layout is not WHOLE:
            settings.append(f"run.max_steps={COMPARED}")
        run_ranks(train, layout.ranks, str(tmp_path / "config.json"), settings, False)

    found = losses(tmp_path / WHOLE.name / "metrics.jsonl")
    before = {name: found[0, f"valid/loss/{name}"] for name in ("ar", "nar", "aux", "length")}
    after = {name: found[STEPS, f"valid/loss/{name}"] for name in before}
    print("before", before, "after", after)
    assert before["ar"] == pytest.approx(their_loss(bart, valid), rel=1e-6)
    # What it knew it still knows, and P_NAR has learnt as much.
    assert after["ar"] < before["ar"] + 0.05
    assert after["nar"] < 0.2 * before["nar"]
    assert after["length"] < 0.5 * before["length"]

    for layout in OTHERS:
        others = numbers(tmp_path / layout.name)
        assert max(step for step, _ in others) == COMPARED
        both = [key for key in others if key in found]
        gap = max(abs(others[key] - found[key]) / abs(found[key]) for key in both)
        print(layout.name, gap)
        assert gap < 1e-5

    model = JanusModel.from_pretrained(tmp_path / WHOLE.name / "export")
    for mode, share in (("ar", 0.85), ("nar", 0.5)):
        outputs = model.generate([source for source, _ in valid], mode=mode)
        right = sum(out.text == target for out, (_, target) in zip(outputs, valid, strict=True))
        print(mode, right, "of", len(valid))
        assert right > share * len(valid)
