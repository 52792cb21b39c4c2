"""A source vocabulary apart from the target's: the model, the corpus, training on any layout, and the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from janus_pt import JanusModel
from janus_pt.checks import read_config
from janus_pt.data.corpus import open_corpus
from janus_pt.data_prep.train_tokenizer import train
from janus_pt.data_prep.verify_shards import verify
from janus_pt.export.folder import load_export
from janus_pt.tokenizer import load_tokenizer
from janus_pt.train.preflight import check_corpora
from janus_pt.utils.errors import UserError
from tests.support.corpus_text import sentence
from tests.support.models import as_source, random_sources, tiny_model
from tests.support.runs import launch, losses, run_script, write_run_config

PAIRS = [(sentence(i), sentence(i + 1).upper()) for i in range(120)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of lower-case text, a smaller one of upper-case text."""
    folder = tmp_path_factory.mktemp("tokenizers")
    files = {name: folder / f"{name}.model" for name in ("source", "target")}
    for index, (path, size) in enumerate(zip(files.values(), (330, 320), strict=True)):
        train([sentence(i).upper() if index else sentence(i) for i in range(500)], size).save(path)
    return files


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch, tokenizers: dict[str, Path], tmp_path: Path) -> Path:
    """Pairs, each side in its own tokenizer."""
    for name, lines in zip(("source", "target"), zip(*PAIRS, strict=True), strict=True):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    folder = tmp_path / "pairs"
    asked = (
        "--source",
        tmp_path / "source",
        "--target",
        tmp_path / "target",
        "--output",
        folder,
        "--workers",
        1,
    )
    own = ("--tokenizer", tokenizers["target"], "--source-tokenizer", tokenizers["source"])
    assert run_script(monkeypatch, "data_prep/build_shards.py", *asked, *own) == 0
    assert list(verify(folder, workers=1)) == []
    return folder


def test_with_equal_tables_the_model_is_the_shared_one() -> None:
    shared, apart = tiny_model(3), tiny_model(3, source_vocab_size=24)
    apart.load_state_dict(
        {**shared.state_dict(), "embed_source.weight": shared.embed_tokens.weight}
    )
    source = as_source(random_sources(1, 4))
    with torch.no_grad():
        assert torch.equal(shared.encode(source), apart.encode(source))
        apart.embed_source.weight.zero_()
        assert not torch.equal(shared.encode(source), apart.encode(source))


def test_each_side_is_in_its_own_tokens(corpus: Path, tokenizers: dict[str, Path]) -> None:
    found = open_corpus(str(corpus)).read(0, 7)
    for text, (name, path) in zip(PAIRS[7], tokenizers.items(), strict=True):
        np.testing.assert_array_equal(found[name], load_tokenizer(path).encode(text))


def test_a_tokenizer_of_sources_without_sources_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = (
        "--input",
        "a.txt",
        "--output",
        tmp_path / "c",
        "--tokenizer",
        "t",
        "--source-tokenizer",
        "s",
    )
    assert run_script(monkeypatch, "data_prep/build_shards.py", *asked) == 2
    assert "--source-tokenizer: goes with --source and --target" in capfd.readouterr().err


def test_an_export_needs_both_tokenizers_and_reads_sources_with_theirs(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    target, source = (load_tokenizer(tokenizers[name]) for name in ("target", "source"))
    shape = {
        "vocab_size": target.vocab_size,
        "source_vocab_size": source.vocab_size,
        "max_positions": 64,
    }
    model = JanusModel(tiny_model(4, **shape), target, source)
    model.save_pretrained(tmp_path / "export")
    again = JanusModel.from_pretrained(tmp_path / "export", device="cpu")
    assert again.encode(PAIRS[0][0]) == source.encode(PAIRS[0][0]) != target.encode(PAIRS[0][0])
    (one,), (other,) = (m.generate([PAIRS[0][0]], max_length=6) for m in (model, again))
    assert one.tokens == other.tokens and one.text == target.decode(one.tokens)
    with pytest.raises(UserError, match="two vocabularies, but 1 tokenizer is given"):
        JanusModel(model.model, target).save_pretrained(tmp_path / "other")
    (tmp_path / "export/source_tokenizer.model").write_bytes(tokenizers["target"].read_bytes())
    with pytest.raises(
        UserError, match=r"source_tokenizer\.model: not the tokenizer the model was exported with"
    ):
        load_export(tmp_path / "export")


def test_a_model_of_other_vocabularies_is_refused(corpus: Path, tmp_path: Path) -> None:
    data = {
        "data__train": [{"path": str(corpus)}],
        "data__valid": str(corpus),
        "objective__recipe": "translation",
    }
    config = read_config(
        write_run_config(tmp_path, **data, model__vocab_size=320, model__source_vocab_size=12)
    )
    with pytest.raises(
        UserError, match=r"model\.source_vocab_size is 12, its tokenizers have 330; set it to 330"
    ):
        check_corpora(config.data, config.model, config.objective)


@pytest.mark.slow
def test_training_is_the_same_on_four_ranks_goes_on_on_one_and_the_export_writes(
    corpus: Path, tmp_path: Path
) -> None:
    content = json.loads((corpus / "manifest.json").read_text())
    sizes = {
        f"model__{kind}vocab_size": content[f"{kind}tokenizer"]["vocab_size"]
        for kind in ("", "source_")
    }
    data = {
        "data__train": [{"path": str(corpus)}],
        "data__valid": str(corpus),
        "objective__recipe": "translation",
    }
    shape: dict[str, Any] = {
        "model__max_positions": 80,
        "data__micro_batch_size": 128,
        "run__max_steps": 8,
    }
    shape["schedule__kind"] = "inverse_sqrt"  # which does not look at the end
    four = [
        "parallel.tensor_parallel_size=2",
        "parallel.pipeline_parallel_size=2",
        "run.max_steps=6",
    ]
    found = []
    for folder, parts in ((tmp_path / "one", [(1, [])]), (tmp_path / "both", [(4, four), (1, [])])):
        path = write_run_config(
            folder, **sizes, **data, **shape, run__output_dir=str(folder / "run")
        )
        for ranks, changes in parts:
            settings = [part for change in changes for part in ("--set", change)]
            result = launch(
                "finetune.py", "--config", str(path), "--resume", "auto", *settings, ranks=ranks
            )
            assert result.returncode == 0, result.stderr[-2000:]
        found.append(losses(folder / "run/metrics.jsonl"))
    one, both = found
    shared = [key for key in one if key in both]  # validation also at the end of the first part
    assert {step for step, _ in shared} >= {1, 6, 7, 8}
    np.testing.assert_allclose(
        [both[key] for key in shared], [one[key] for key in shared], rtol=1e-5, atol=1e-7
    )  # divergences near 0
    (written,) = JanusModel.from_pretrained(tmp_path / "both/run/export", device="cpu").generate(
        [PAIRS[0][0]]
    )
    assert written.tokens
