"""`launchers/benchmark.py`: what it measures is what was decoded; wrong arguments are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from janus_pt import JanusModel
from janus_pt.benchmark import decode as benchmark
from janus_pt.benchmark.engines import other_engines
from janus_pt.benchmark.timing import median_times
from janus_pt.tokenizer import read_tokenizer
from tests.support.models import random_sources, tiny_model, tokenizer_bytes
from tests.support.runs import run_script

TEXTS = [
    "the mask reads the slot",
    "the beam writes a token",
    "pass",
    "the query reads the content",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark")
    tokenizer = read_tokenizer(tokenizer_bytes())
    model = JanusModel(
        tiny_model(5, vocab_size=tokenizer.vocab_size, max_positions=64).float(), tokenizer
    )
    model.save_pretrained(path / "export")
    (path / "in").write_text("\n".join(TEXTS) + "\n")
    # Greedy search's own outputs are the references, so that its BLEU is known.
    (path / "reference").write_text(
        "\n".join(g.text.replace("\n", " ") for g in model.generate(TEXTS)) + "\n"
    )
    return path


def test_the_table_is_of_what_was_decoded(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "other_engines", lambda *_: {})
    # Random weights hardly ever end: torch needs a minute to add up all their operators.
    monkeypatch.setattr(benchmark, "PROFILED_SENTENCES", 1)
    files = (
        "--model",
        folder / "export",
        "--input",
        folder / "in",
        "--reference",
        folder / "reference",
    )
    few = (
        "--batch-sizes",
        1,
        3,
        "--sentences",
        3,
        "--repeats",
        1,
        "--threads",
        1,
        "--precisions",
        "float32",
    )
    assert (
        run_script(
            monkeypatch,
            "launchers/benchmark.py",
            "decode",
            *files,
            *few,
            "--profile",
            "--output",
            tmp_path / "out.json",
        )
        == 0
    )
    told = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["ways"]}
    assert list(rows) == list(benchmark.WAYS) and all(f"{name} " in told for name in rows)
    model = JanusModel.from_pretrained(folder / "export")
    for name, row in rows.items():
        outputs = model.generate(TEXTS, **benchmark.WAYS[name])
        assert row["passes"] == pytest.approx(sum(g.decoder_passes for g in outputs) / 4)
        for size, speed in row["sentences_per_s"].items():
            count = 3
            tokens = sum(len(output.tokens) for output in outputs[:count])
            assert row["tokens_per_s"][size] / speed == pytest.approx(tokens / count)
    assert rows["AR greedy"]["as_greedy"] == rows["speculative"]["as_greedy"] == 1.0
    assert rows["AR greedy"]["bleu"] == rows["speculative"]["bleu"] == pytest.approx(100)
    assert rows["NAR 1 pass"]["bleu"] < 100
    assert told.count("share of the operators' time") == 2 and told.count(" calls\n") == 20


def test_the_median_of_repeats_is_taken_in_turns() -> None:
    calls: list[str] = []
    times = median_times(
        [lambda: calls.append("a") or 1, lambda: calls.append("b") or 2], repeats=2
    )
    assert calls == ["a", "b"] * 3 and [result for _, result in times] == [1, 2]
    assert all(0 <= seconds < 1 for seconds, _ in times)


@pytest.mark.parametrize("package", ["transformers", "ctranslate2"])
def test_other_engines_write_the_length_they_are_told(
    package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(package)
    model = tiny_model(0, vocab_size=40, hidden_size=16, num_attention_heads=2, pre_layer_norm=True)
    state = model.float().state_dict()
    engines = other_engines(model.config, state, 6, 1)
    for engine in engines.values():
        outputs = engine([[7, 8, 9, 10, 11, 12]] * 3)
        assert [len(tokens) for tokens in outputs] == [6] * 3


def test_ctranslate2_writes_what_our_model_writes() -> None:
    pytest.importorskip("ctranslate2")
    model = tiny_model(7, vocab_size=40, pre_layer_norm=True, ar_stream="content").float()
    engines = other_engines(model.config, model.state_dict(), 9, 1)
    ids = [source[1:-1] for source in random_sources(7, 6, vocab_size=40)]
    ours = benchmark._decode_greedily
    janus = JanusModel(model, read_tokenizer(tokenizer_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "ENGINE_LENGTH", 9)
        assert engines["CTranslate2 float32"](ids) == ours(janus, ids)


def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("janus_pt.benchmark.engines.is_installed", lambda name: False)
    assert other_engines(tiny_model().config, {}, 6, 1) == {}
    assert capsys.readouterr().out.count("is not installed") == 2


def test_mistakes_are_told(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_script(monkeypatch, "launchers/benchmark.py", "fly") == 2
    assert "there is no command 'fly'; commands: " in capsys.readouterr().err
    (tmp_path / "short").write_text("one\n")
    files = (
        "--model",
        folder / "export",
        "--input",
        folder / "in",
        "--reference",
        tmp_path / "short",
    )
    assert run_script(monkeypatch, "launchers/benchmark.py", "decode", *files) == 2
    assert "1 lines, but" in capsys.readouterr().err
    assert (
        run_script(monkeypatch, "launchers/benchmark.py") == 0
        and "decode" in capsys.readouterr().out
    )
