"""Checking corpora: a whole one has no problems, every damage is named with its file."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from janus_pt.data_prep.build_shards import CorpusRequest, build
from janus_pt.data_prep.verify_shards import verify
from tests.support.corpus_text import document, tokenizer
from tests.support.runs import run_script


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "a.txt").write_text("\n\n".join(document(i) for i in range(30)))
    build(
        CorpusRequest(
            ((str(folder / "a.txt"),),), tokenizer(), max_tokens=64, samples_per_shard=200
        ),
        folder / "corpus",
        workers=1,
    )
    return folder / "corpus"


def damaged_copy(corpus: Path, folder: Path) -> Path:
    shutil.copytree(corpus, folder)
    return folder


def test_a_whole_corpus_has_no_problems(corpus: Path) -> None:
    assert list(verify(corpus, workers=1)) == []


def test_every_kind_of_damage_is_named(corpus: Path, tmp_path: Path) -> None:
    folder = damaged_copy(corpus, tmp_path / "corpus")
    with (folder / "shard-000000.tar").open("r+b") as file:
        file.seek(512 + 128)
        file.write(b"\xff\xff")  # the first token
    os.truncate(folder / "shard-000001.tar", 10_000)
    index = np.load(folder / "shard-000002.idx.npy", allow_pickle=False)
    index[5, 0] += 2
    np.save(folder / "shard-000002.idx.npy", index)
    (folder / "shard-000003.tar").unlink()
    (folder / "shard-000099.tar").write_bytes(b"")
    with (folder / "tokenizer.model").open("ab") as file:
        file.write(b" ")
    problems = "\n".join(verify(folder, workers=1))
    for expected in (
        "shard-000000.tar: its sha256",
        "shard-000000.tar: 000000000.text.npy: token id 65535 is not below 330",
        "shard-000001.tar: has 10000 bytes",
        "shard-000001.tar: cannot be read",
        "shard-000002.tar: the sha256 of shard-000002.idx.npy",
        "shard-000002.tar: 000000405.text.npy: its tokens are not at byte",
        "shard-000003.tar: shard-000003.tar is missing",
        "shard-000099.tar: is not in the manifest",
        "tokenizer.model: ",
    ):
        assert expected in problems


def test_a_member_out_of_place_is_named(corpus: Path, tmp_path: Path) -> None:
    folder = damaged_copy(corpus, tmp_path / "corpus")
    with (
        tarfile.open(corpus / "shard-000000.tar") as old,
        tarfile.open(folder / "shard-000000.tar", "w") as new,
    ):
        for member in list(old)[1:]:
            new.addfile(member, old.extractfile(member))
    assert any(
        "000000001.text.npy where 000000000.text.npy should be" in problem
        for problem in verify(folder, 1)
    )


def test_exit_codes_of_the_check(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = damaged_copy(corpus, tmp_path / "corpus")
    assert run_script(monkeypatch, "data_prep/verify_shards.py", folder) == 0
    assert "whole" in capsys.readouterr().out
    (folder / "shard-000000.idx.npy").unlink()
    assert run_script(monkeypatch, "data_prep/verify_shards.py", folder) == 1
    (folder / "manifest.json").unlink()
    assert run_script(monkeypatch, "data_prep/verify_shards.py", folder) == 2
    assert "an unfinished build" in capsys.readouterr().err
