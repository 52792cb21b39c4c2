"""Filters against a corpus in which it is known what should go, and against datatrove's and closed forms."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from datatrove.data import Document

from janus_pt.data.manifest import read_manifest
from janus_pt.data_prep.pipeline.cleaning import EMAIL, PageText, cleaning_steps
from janus_pt.data_prep.pipeline.contamination import ContaminationIndex
from janus_pt.data_prep.pipeline.language import identify
from janus_pt.data_prep.pipeline.schema import (
    CorpusBuildConfig,
    DecontaminationConfig,
    HeldOutConfig,
)
from janus_pt.data_prep.pipeline.words import UnicodeWords
from tests.support.corpus_text import tokenizer
from tests.support.planted import Planted, build_config, plant, run_inline, scores


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Planted, CorpusBuildConfig]:
    folder = tmp_path_factory.mktemp("planted")
    planted = plant(folder / "input", 400)
    path = folder / "tokenizer.model"
    path.write_bytes(tokenizer().content)
    config = build_config(planted, folder / "corpus", path, tasks=2)
    run_inline(config)
    return planted, config


def test_what_was_planted_is_removed(cleaned: tuple[Planted, CorpusBuildConfig]) -> None:
    result = scores(*cleaned)
    for name, (_, precision, recall) in result.items():
        assert precision >= 0.95, name
        assert recall >= (0.95 if name != "minhash" else 0.85), name
    # Nothing of a test set may stay.
    assert result["decontamination"][2] == 1.0
    assert result["exact_text"][1:] == (1.0, 1.0)


def test_the_report_says_what_went_and_why(cleaned: tuple[Planted, CorpusBuildConfig]) -> None:
    planted, config = cleaned
    output = Path(config.output)
    report = json.loads((output / "report.json").read_text())
    assert set(report["removed"]["language"]) >= {"de", "fr", "ru"}
    listed = {entry["document"] for entry in report["contaminated"]}
    assert listed <= {place for place, kind in planted.kind.items() if kind == "test"}
    # Marks are spaces.
    sentences = planted.tests.read_text().lower().replace(".", "").replace("'", " ").splitlines()
    for entry in report["contaminated"]:
        assert any(entry["words"] in sentence for sentence in sentences)
    page = (output / "report.html").read_text()
    manifest = read_manifest(output)
    assert manifest.fingerprint in page and "<h2>language: ru</h2>" in page
    assert manifest.recipe is not None and manifest.recipe.settings["filters"]["language"]


def test_removed_text_is_escaped_in_the_page(tmp_path: Path) -> None:
    lines = [f"<script>alert({number})</script> und ein deutscher Satz." for number in range(3)]
    lines.append("This one is a sentence in English, and it is long enough to be recognised.")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    (tmp_path / "tokenizer.model").write_bytes(tokenizer().content)
    values = {
        "output": str(tmp_path / "corpus"),
        "sources": [{"name": "a", "path": str(tmp_path / "a.jsonl"), "format": "jsonl"}],
        "filters": {"language": {"keep": ["en"]}},
        "tokenizer": {"path": str(tmp_path / "tokenizer.model")},
    }
    run_inline(CorpusBuildConfig.model_validate(values))
    page = (tmp_path / "corpus" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_languages_are_identified_by_the_packaged_model() -> None:
    texts = {
        "en": "The children were playing in the garden when it began to rain.",
        "de": "Die Kinder spielten im Garten, als es zu regnen begann.",
        "fr": "Les enfants jouaient dans le jardin quand il a commencé à pleuvoir.",
        "ja": "子供たちが庭で遊んでいると、雨が降り始めた。",
    }
    for code, text in texts.items():
        found = identify(text)
        assert max(found, key=lambda language: found[language]) == code


def test_short_test_sentences_match_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text(
        "A man in a blue shirt is standing on a ladder cleaning the tall window of a shop.\n"
        "Two dogs run through snow.\nThank you.\n"
    )
    config = DecontaminationConfig(tests=(HeldOutConfig(name="m30k", path=str(path)),))
    index = ContaminationIndex(config)
    assert index.short == {"m30k": 1}
    # 13 words in a row of the first one; its case, marks and the words around do not matter.
    assert index.find(
        "And: man in a BLUE shirt is standing on a ladder, cleaning the tall — so"
    ) == (
        "m30k",
        "man in a blue shirt is standing on a ladder cleaning the tall",
    )
    assert index.find("man in a blue shirt is standing on a ladder cleaning the") is None
    assert index.find("we saw two dogs run through snow yesterday") is not None
    assert index.find("two dogs run through the snow; thank you") is None


def test_copies_stay_copies_when_addresses_are_masked() -> None:
    values = {
        "output": "unused",
        "sources": [{"name": "a", "path": "unused", "format": "jsonl"}],
        "filters": {"personal_data": {}},
    }
    (step,) = cleaning_steps(CorpusBuildConfig.model_validate(values))
    texts = [f"Write to jane.{number}@mail.example.net or 8.8.8.8." for number in range(3)]
    documents = [Document(text, str(number)) for number, text in enumerate(texts)]
    masked = {document.text for document in step.run(documents)}
    assert masked == {f"Write to {EMAIL} or 192.0.2.1."}


def test_the_text_of_a_page_is_taken_from_it() -> None:
    sentences = " ".join(f"This is sentence {number} of the page." for number in range(20))
    menu = "<nav><a href=/>Home</a><a href=/a>About</a></nav>"
    page = f"<html><body>{menu}<article><h1>Title</h1><p>{sentences}</p></article></body></html>"
    pages = [
        Document(page, "1", metadata={"html": True}),
        # The same again: it must not depend on what was read before.
        Document(page, "2", metadata={"html": True}),
        Document("<html></html>", "3", metadata={"html": True}),
        Document("no page", "4"),
    ]
    texts = {document.id: document.text for document in PageText().run(pages)}
    assert sorted(texts) == ["1", "2", "4"]
    assert texts["1"] == texts["2"] and sentences in texts["1"] and "About" not in texts["1"]


def test_words_and_sentences_are_the_text() -> None:
    words = UnicodeWords()
    text = "Don't panic: it's 42 o'clock, at 3.30 — “really”. 東京へ行く。"
    found = words.word_tokenize(text)
    assert "".join(found) == re.sub(r"\s", "", text)
    assert found[:3] == ["Don't", "panic", ":"] and found[-6:] == [
        "東",
        "京",
        "へ",
        "行",
        "く",
        "。",
    ]
    spans = words.span_tokenize(text)
    assert "".join(text[start:end] for start, end in spans) == text
