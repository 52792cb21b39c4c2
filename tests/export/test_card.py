"""Model cards: Hugging Face's own library reads them, and they say what the run and its corpora say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from janus_pt import JanusModel
from janus_pt.config.origin import (
    CARD,
    UNKNOWN_ORIGIN,
    CorpusOrigin,
    Origin,
    read_license,
    read_origin,
)
from janus_pt.config.schema import AdapterConfig, Config
from janus_pt.export.adapters import save_adapter
from janus_pt.export.card import add_evaluation, model_card
from janus_pt.export.folder import load_export, save_export
from janus_pt.export.run_origin import run_origin
from janus_pt.utils.errors import UserError
from tests.support.models import tiny_model, tokenizer_bytes
from tests.support.runs import write_run_config

ORIGIN = Origin(
    objective="cmlm",
    steps=[100, 200],
    corpora=[CorpusOrigin(name="books", fingerprint="ab" * 32, samples=1234, tokens=5678)],
    losses={"loss/total": 1.5},
    evaluation={"bleu": 31.25, "loss/nar": 2.0},
    init_from_sha256="cd" * 32,
    base_model="someone/bart-tiny",
    license="mit",
)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes(300))
    model, folder = tiny_model(vocab_size=300), tmp_path / "export"
    path = tmp_path / "tokenizer.model"
    save_export(folder, model.state_dict(), model.config, path, origin=ORIGIN)
    return folder


def test_the_hub_library_reads_it(export: Path) -> None:
    card = ModelCard.load(export / CARD)
    assert card.data.library_name == "janus_pt" and card.data.license == "mit"
    assert card.data.base_model == "someone/bart-tiny"
    parameters = sum(p.numel() for p in tiny_model(vocab_size=300).parameters())
    for text in (f"{parameters:,}", "1,234", "5,678", "ab" * 32, "cd" * 32, "31.25", "100, 200"):
        assert text in card.text, text
    # It was trained to be decoded in one way only.
    assert "`nar`" in card.text and "`iterations=4`" in card.text and "num_beams" not in card.text


def test_what_it_says_is_read_back_and_kept(export: Path, tmp_path: Path) -> None:
    assert load_export(export).origin == ORIGIN
    JanusModel.from_pretrained(export, device="cpu").save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / CARD).read_bytes() == (export / CARD).read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"# My notes\n",
        b"---\n: [\n---\n",
        b"---\nlibrary_name: x\n---\n",
        b"\xff\xfe---",
    ],
)
def test_a_missing_or_changed_card_changes_nothing(export: Path, content: bytes | None) -> None:
    (export / CARD).unlink()
    if content is not None:
        (export / CARD).write_bytes(content)
    assert load_export(export).origin == UNKNOWN_ORIGIN
    JanusModel.from_pretrained(export, device="cpu").save_pretrained(export)
    assert ModelCard.load(export / CARD).data.library_name == "janus_pt"


def test_scores_are_added_to_the_card_of_a_model_and_of_adapters(
    export: Path, tmp_path: Path
) -> None:
    adapter = AdapterConfig(kind="lora")
    save_adapter(tmp_path / "lora", {}, adapter, export, origin=ORIGIN)
    for folder in (export, tmp_path / "lora"):
        before = read_origin(folder)
        add_evaluation(folder, {"test/x/ar/bleu": 12.5, "bleu": 30.0})
        found = read_origin(folder)
        assert found.evaluation == {**before.evaluation, "test/x/ar/bleu": 12.5, "bleu": 30.0}
        assert found.model_copy(update={"evaluation": before.evaluation}) == before == ORIGIN
        assert "12.5" in (folder / CARD).read_text()
    assert load_export(export).state


def test_a_folder_with_a_readme_alone_is_not_replaced(export: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / CARD).write_text("mine")
    model = JanusModel.from_pretrained(export, device="cpu")
    with pytest.raises(UserError, match="no exported model"):
        model.save_pretrained(other)
    with pytest.raises(UserError, match="no exported model"):
        save_adapter(other, {}, AdapterConfig(kind="lora"), export)
    assert (other / CARD).read_text() == "mine"


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n# BART\n", "apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("---\nlicense:\n- mit\n- x\n---\n", None),
        ("license: mit\n", None),
        ("text\n---\nlicense: mit\n---\n", None),
    ],
)
def test_the_licence_of_another_projects_model(
    tmp_path: Path, card: str, license: str | None
) -> None:
    (tmp_path / CARD).write_text(card)
    assert read_license(tmp_path) == license


def test_what_is_unknown_is_not_invented() -> None:
    text = model_card(tiny_model().config, UNKNOWN_ORIGIN)
    front_matter = text.split("---\n")[1]
    assert "license" not in front_matter and "base_model" not in front_matter
    assert "not recorded" in text and "has not stated one" in text


def test_the_origin_of_a_run(export: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = write_run_config(tmp_path / "files", run__init_from=str(export))
    config = Config.model_validate_json(path.read_text())
    folder = Path(config.run.output_dir)
    folder.mkdir()
    records = [
        {"step": 1, "loss/total": 9.0},
        {"step": 2, "valid/loss/total": 8.0, "valid/bleu": 3.0},
        {"step": 3, "loss/total": 7.0, "lr": 0.1},
        {"step": 4, "loss/total": 1.0},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 3, "lo')
    found = run_origin(config, [1, 3])
    assert found.losses == {"loss/total": 7.0}
    assert found.evaluation == {"loss/total": 8.0, "bleu": 3.0}
    assert found.objective == "janus" and found.steps == [1, 3]
    # The licence of what it began with still holds.
    assert found.license == "mit" and found.base_model == "someone/bart-tiny"
    assert (
        found.init_from_sha256 == json.loads((export / "config.json").read_text())["model_sha256"]
    )
    manifest = json.loads((tmp_path / "files/corpus/manifest.json").read_text())
    [corpus] = found.corpora
    assert corpus.name == "corpus" and corpus.samples == manifest["samples"] == 80
    assert corpus.tokens == sum(manifest["tokens"].values())
