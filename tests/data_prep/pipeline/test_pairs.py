"""Filters of pairs, one by one, and a corpus of pairs from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document

from janus_pt.data.corpus import open_corpus
from janus_pt.data.manifest import read_manifest
from janus_pt.data_prep.pipeline.pair_filters import numbers, pair_rules
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig, PairFilters
from janus_pt.data_prep.verify_shards import verify
from tests.support.corpus_text import tokenizer
from tests.support.planted import run_inline

GOOD = [
    ("Im Jahr 1.250 kamen 17 Schiffe in den Hafen.", "In the year 1,250 17 ships came into the harbour."),
    ("Wo ist der alte Bahnhof?", "Where is the old station?"),
    ("Der Preis beträgt 3,50 Euro.", "The price is 3.50 euros."),
]  # fmt: skip


def reason(source: str, target: str, score: float | None = None, **config: Any) -> str | None:
    """The first reason to remove a pair."""
    document = Document(source, "f:1", metadata={"target": target})
    if score is not None:
        document.metadata["score"] = score
    for _, rule in pair_rules(PairFilters.model_validate(config)):
        if (found := rule(document)) is not None:
            return found
    return None


@pytest.mark.parametrize(
    ("config", "source", "target", "expected"),
    [
        ({"max_length_ratio": 2.0}, "kurz", "x" * 21, "lengths differ"),
        ({"max_length_ratio": 2.0}, "kurz", "x" * 19, None),
        ({"max_words": 3}, "eins zwei drei vier", "one", "long source"),
        ({"max_overlap": 0.6}, "Das ist New York City", "This is New York City", None),
        ({"max_overlap": 0.5}, "Das ist New York City", "This is New York City", "copied"),
        ({"max_overlap": 1.0}, "New York!", "New York.", "copied"),
        ({"source_script": "Cyrillic"}, "Добрый день, Anna", "Good day", None),
        ({"source_script": "Cyrillic"}, "Dobry den", "Good day", "not Cyrillic"),
        ({"numbers": True}, "Um 14.30 Uhr, 1.000 Mal", "At 14:30, 1,000 times", None),
        ({"numbers": True}, "Im Jahr 1848", "In the year 1849", "numbers differ"),
        ({"numbers": True}, "Zwei Hunde", "2 dogs", None),
        ({"punctuation": True}, "Wo?", "«Where?»", None),
        ({"punctuation": True}, "Wo?", "Here.", "last marks differ"),
        ({"target_language": {"keep": ["en"]}}, "Guten Tag", "Das ist nicht Englisch, nein.", "other target language"),
        ({}, "Guten Tag", "  ", "the target is empty"),
    ],
)  # fmt: skip
def test_each_filter(
    config: dict[str, Any], source: str, target: str, expected: str | None
) -> None:
    assert reason(source, target, **config) == expected


def test_scores() -> None:
    assert reason("a", "b", score=1.1, min_score=1.05) is None
    assert reason("a", "b", score=1.0, min_score=1.05) == "below the least score"
    assert reason("a", "b", min_score=1.05) == "no score"


def test_good_pairs_stay_under_all_filters() -> None:
    config = {
        "max_words": 40, "max_length_ratio": 2.0, "max_overlap": 0.6, "source_script": "Latin",
        "target_script": "Latin", "numbers": True, "punctuation": True,
        "source_language": {"keep": ["de"], "threshold": 0.5},
        "target_language": {"keep": ["en"], "threshold": 0.5},
    }  # fmt: skip
    for source, target in GOOD:
        assert reason(source, target, **config) is None


def test_numbers_are_compared_without_separators() -> None:
    assert numbers("1.234.567 und 0,5 und 7") == ["05", "1234567"]
    assert numbers("1,234,567 and 0.5 and 7") == ["05", "1234567"]


def test_a_corpus_of_pairs(tmp_path: Path) -> None:
    rows = [
        {"de": f"Satz {n} ist gut.", "en": f"Sentence {n} is good.", "s": 1.0} for n in range(40)
    ]
    rows.append({"de": "Satz 3 ist gut.", "en": "Sentence three is fine.", "s": 1.0})
    rows.append({"de": "Satz drei ist fein.", "en": "Sentence 3 is good.", "s": 1.0})
    rows.append({"de": "schlecht", "en": "badly aligned", "s": 0.1})
    rows.append({"de": "sehr " * 60, "en": "very " * 60, "s": 1.0})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.de").write_text("Ein Satz.\nsatz 7 ist gut\n")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer().content)
    source = {
        "name": "a", "path": str(tmp_path / "a.jsonl"), "format": "jsonl", "source_field": "de",
        "target_field": "en", "score_field": "s",
    }  # fmt: skip
    values = {
        "output": str(tmp_path / "corpus"),
        "kind": "pairs",
        "tasks": 2,
        "sources": [source],
        "pair_filters": {"min_score": 0.5},
        "deduplication": {"exact": ["source", "target"]},
        "decontamination": {
            "tests": [{"name": "test", "path": str(tmp_path / "test.de")}],
            "min_words": 3,
        },
        "tokenizer": {"path": str(tmp_path / "tokenizer.model")},
        "shards": {"max_tokens": 100, "samples_per_shard": 16},
    }
    run_inline(CorpusBuildConfig.model_validate(values))
    manifest = read_manifest(tmp_path / "corpus")
    assert manifest.fields == ("source", "target") and list(verify(tmp_path / "corpus", 1)) == []
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    assert report["removed"]["min_score"] == {"below the least score": 1}
    # Numbers count as 0: all forty are the test sentence.
    assert report["removed"]["decontamination"] == {"test": 41}
    corpus = open_corpus(str(tmp_path / "corpus"))
    texts = [
        tokenizer().decode(corpus.read(0, row)["target"].tolist())
        for row in range(manifest.samples)
    ]
    assert texts == ["Sentence 3 is good."]
    skipped = json.loads((tmp_path / "corpus" / "skipped.jsonl").read_text())
    assert manifest.skipped == 1 and skipped["line"] == 44 and "more than 100" in skipped["reason"]
