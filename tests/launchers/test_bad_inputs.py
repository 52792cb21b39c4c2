"""A user's mistakes at the command line: one clear message, exit code 2, no stack trace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.corpora import write_corpus
from tests.support.models import tokenizer_bytes
from tests.support.runs import ROOT, environment, launch, write_run_config

pytestmark = pytest.mark.slow


def broken_json(folder: Path) -> tuple[list[str], str]:
    path = write_run_config(folder)
    path.write_text(path.read_text().replace('"window": 40', '"window": 40,,'))
    return ["--config", str(path)], "config.json:"


def misspelt_key(folder: Path) -> tuple[list[str], str]:
    return [
        "--config",
        str(write_run_config(folder, model__hiden_size=3)),
    ], 'did you mean "hidden_size"?'


def wrong_type(folder: Path) -> tuple[list[str], str]:
    return ["--config", str(write_run_config(folder, run__max_steps="many"))], "run.max_steps"


def impossible_shape(folder: Path) -> tuple[list[str], str]:
    return [
        "--config",
        str(write_run_config(folder, model__num_attention_heads=5)),
    ], "model.hidden_size"


def uneven_batch(folder: Path) -> tuple[list[str], str]:
    return [
        "--config",
        str(write_run_config(folder, data__global_batch_size=100)),
    ], "data.global_batch_size"


def deepspeed_clash(folder: Path) -> tuple[list[str], str]:
    return [
        "--config",
        str(write_run_config(folder, deepspeed__fp16={"enabled": True})),
    ], "deepspeed.fp16"


def missing_corpus(folder: Path) -> tuple[list[str], str]:
    return [
        "--config",
        str(write_run_config(folder, data__train=[{"path": str(folder / "nowhere")}])),
    ], "nowhere"


def other_vocabulary(folder: Path) -> tuple[list[str], str]:
    return ["--config", str(write_run_config(folder, model__vocab_size=400))], "set it to 300"


def text_for_translation(folder: Path) -> tuple[list[str], str]:
    return [
        "--config",
        str(write_run_config(folder, objective__recipe="translation")),
    ], "no target side"


def too_long_for_positions(folder: Path) -> tuple[list[str], str]:
    return ["--config", str(write_run_config(folder, model__max_positions=8))], "max_positions"


def no_model_to_start_from(folder: Path) -> tuple[list[str], str]:
    return ["--config", str(write_run_config(folder, run__init_from=str(folder / "gone")))], "gone"


def shard_cut_short(folder: Path) -> tuple[list[str], str]:
    path = write_run_config(folder)
    shard = folder / "corpus" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:4096])
    return ["--config", str(path)], "shard-000000.tar"


CASES = [
    broken_json, misspelt_key, wrong_type, impossible_shape, uneven_batch, deepspeed_clash, missing_corpus,
    other_vocabulary, text_for_translation, too_long_for_positions, no_model_to_start_from, shard_cut_short,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_training(case: Callable[[Path], tuple[list[str], str]], tmp_path: Path) -> None:
    arguments, expected = case(tmp_path)
    assert_told(launch("pretrain.py", *arguments), expected)


def assert_told(done: subprocess.CompletedProcess[str], expected: str) -> None:
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1


def tool(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / "data_prep" / script), *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, timeout=120, env=environment())


def test_corpus_tools(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(tokenizer_bytes(300))
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": "good"}) + "\n{broken\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    (tmp_path / "a.en").write_text("one\n")
    build = ("build_shards.py", "--tokenizer", tokenizer, "--output", tmp_path / "out")
    assert_told(tool(*build, "--input", tmp_path / "bad.jsonl"), "bad.jsonl")
    assert_told(tool(*build, "--source", tmp_path / "a.de", "--target", tmp_path / "a.en"), "a.en")
    assert_told(tool(*build, "--input", tmp_path / "none.txt"), "none.txt")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_generate(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [3])
    assert_told(launch("generate.py", "--model", str(corpus), "--input", "-"), "no exported model")
