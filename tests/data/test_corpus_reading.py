"""A corpus opened from anywhere: what is read is what was written, and damage is named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset

from janus_pt.data import files
from janus_pt.data.corpus import open_corpus
from janus_pt.data.files import local_copy
from janus_pt.data.manifest import MAX_BYTES, InputFile, Manifest, read_manifest
from janus_pt.utils.errors import UserError
from tests.support.corpora import write_corpus

SIZES = [4, 0, 6, 3]


def read_all(url: str, cache: Path | None = None) -> list[dict[str, np.ndarray]]:
    corpus = open_corpus(url, str(cache) if cache else None)
    return [
        corpus.read(shard, sample) for shard, size in enumerate(SIZES) for sample in range(size)
    ]


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys()
        and all(a[name].dtype == b[name].dtype and (a[name] == b[name]).all() for name in a)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("fields", [("text",), ("source", "target")])
@pytest.mark.parametrize("vocab_size", [1000, 100_000])
def test_samples_are_what_webdataset_reads(
    tmp_path: Path, fields: tuple[str, ...], vocab_size: int
) -> None:
    write_corpus(tmp_path, SIZES, fields, vocab_size=vocab_size)
    shards = sorted(str(path) for path in tmp_path.glob("*.tar"))
    expected = [
        {name: np.load(io.BytesIO(sample[f"{name}.npy"])) for name in fields}
        for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    ]
    assert same(read_all(str(tmp_path)), expected)
    assert same(read_all(f"file://{tmp_path}"), expected)
    lengths = np.concatenate(
        [open_corpus(str(tmp_path)).lengths(shard) for shard in range(len(SIZES))]
    )
    assert lengths.tolist() == [max(map(len, sample.values())) + 2 for sample in expected]


def test_few_files_are_open_however_many_shards(tmp_path: Path) -> None:
    write_corpus(tmp_path, [1] * 12)
    corpus = open_corpus(str(tmp_path), keep_open=3)
    first = [corpus.read(shard, 0)["text"].tolist() for shard in range(12)]
    assert open_below(tmp_path) == 3
    assert [corpus.read(shard, 0)["text"].tolist() for shard in range(12)] == first
    del corpus
    assert open_below(tmp_path) == 0


def open_below(folder: Path) -> int:
    paths = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(path.is_relative_to(folder) for path in paths)


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        with fsspec.open(f"{url}/{path.name}", "wb") as file:
            file.write(path.read_bytes())


def test_a_remote_shard_is_fetched_once_and_checked(tmp_path: Path) -> None:
    local, url, cache = (
        write_corpus(tmp_path / "corpus", SIZES),
        "memory://fetched/corpus",
        tmp_path / "cache",
    )
    upload(local, url)
    expected = read_all(str(local))
    assert same(read_all(url, cache), expected)
    memory = fsspec.filesystem("memory")
    for path in memory.glob("/fetched/corpus/shard-*"):
        memory.rm(path)
    assert same(read_all(url, cache), expected)


def test_a_replaced_remote_shard_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DELAYS", ())
    local, url, cache = (
        write_corpus(tmp_path / "corpus", SIZES),
        "memory://replaced/corpus",
        tmp_path / "cache",
    )
    upload(write_corpus(tmp_path / "other", SIZES, seed=8), url)
    with fsspec.open(f"{url}/manifest.json", "wb") as file:
        file.write((local / "manifest.json").read_bytes())
    with pytest.raises(
        UserError, match=r"memory://replaced/corpus/shard-000000.idx.npy: its sha256 is "
    ):
        read_all(url, cache)
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [".lock"]


def test_readers_that_come_together_fetch_a_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_corpus(tmp_path / "corpus", SIZES)
    upload(local, "memory://together")
    shard = read_manifest(local).shards[0]
    opened, really_open = [], fsspec.open

    def slowly(*args: Any) -> Any:
        opened.append(args)
        time.sleep(0.1)
        return really_open(*args)

    monkeypatch.setattr(fsspec, "open", slowly)

    def fetch(_: int) -> Path:
        return local_copy(f"memory://together/{shard.file}", shard.sha256, tmp_path / "cache")

    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(fetch, range(4)))
    assert len(opened) == len(copies) == 1
    assert copies.pop().read_bytes() == (local / shard.file).read_bytes()


def test_a_manifest_survives_writing_and_its_fingerprint_knows_what_is_read(tmp_path: Path) -> None:
    manifest = read_manifest(write_corpus(tmp_path, SIZES))
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    moved = manifest.model_copy(
        update={"sources": (InputFile(path="x", sha256="0" * 64, bytes=1),)}
    )
    other = manifest.model_copy(update={"shards": manifest.shards[::-1]})
    assert moved.fingerprint == manifest.fingerprint != other.fingerprint
    moved.write(tmp_path)
    assert read_manifest(tmp_path) == moved
    assert {path.name for path in tmp_path.glob("*manifest*")} == {"manifest.json"}


def edited(**changes: Any) -> Any:
    return lambda content: json.dumps({**json.loads(content), **changes})


def renamed(name: str) -> Any:
    return lambda content: content.replace("shard-000002.tar", name)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content[:100], "Invalid JSON"),
        (lambda content: "", "Invalid JSON"),
        (lambda content: "[1]", "should be an object"),
        (edited(format="webdataset"), "format: 'webdataset' is not 'janus_pt corpus'"),
        (edited(version=1), "version: 1 was written by another release"),
        (edited(samples=14), "samples is not the sum over the shards"),
        (edited(tokens={"text": 1}), "tokens is not the sum over the shards"),
        (edited(tokens={"source": 1}), "exactly the fields text"),
        (edited(dtype="uint32"), "dtype uint32 does not fit"),
        (edited(samples="13"), "samples: Input should be a valid integer"),
        (edited(extra=1), "extra: Extra inputs are not permitted"),
        (renamed("shard-000000.tar"), "listed twice"),
        *(
            (renamed(name), "shards.2.file")
            for name in ("../x.tar", "/etc/x.tar", "a/b.tar", "..tar", "a\\\\b.tar")
        ),
    ],
)
def test_a_wrong_manifest_is_told_in_one_line(tmp_path: Path, change: Any, problem: str) -> None:
    path = write_corpus(tmp_path, SIZES) / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError) as caught:
        open_corpus(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ") and problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_corpus_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: no corpus here .manifest.json is missing."):
        open_corpus(str(tmp_path))
    with pytest.raises(UserError, match=r"memory://nowhere/manifest.json: no such file"):
        open_corpus("memory://nowhere")
    with pytest.raises(UserError, match=r"nosuch://x/manifest.json: cannot be read: .*nosuch"):
        open_corpus("nosuch://x")
    with pytest.raises(UserError, match="has no samples"):
        open_corpus(str(write_corpus(tmp_path / "empty", [0, 0])))
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=f"larger than {MAX_BYTES} bytes"):
        open_corpus(str(tmp_path))


def no_pickle() -> np.ndarray:
    return np.array([[0, {}]] * 6, dtype=object)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda rows: rows[:-1], "is not the index the corpus was built with"),
        (lambda rows: rows.astype(np.int32), "is not the index the corpus was built with"),
        (lambda rows: no_pickle(), "is not the index|index cannot be read"),
        (
            lambda rows: np.where(rows == rows[1, 1], rows + 1, rows),
            "is not the index the corpus was built with",
        ),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, damage: Any, problem: str) -> None:
    path = write_corpus(tmp_path, SIZES) / "shard-000002.idx.npy"
    np.save(path, damage(np.load(path)), allow_pickle=True)
    refused(tmp_path, problem)


@pytest.mark.parametrize(
    ("sample", "row"),
    [(4, [10**9, 1, 0]), (2, [-1, 1, 0]), (3, [0, -1, 0]), (3, [0, 2**62, 0])],
)
def test_an_index_that_leads_out_of_the_shard_is_refused_even_if_the_manifest_names_it(
    tmp_path: Path, sample: int, row: list[int]
) -> None:
    path = write_corpus(tmp_path, SIZES) / "shard-000002.idx.npy"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    np.save(path, np.where(np.arange(6)[:, None] == sample, row, np.load(path)))
    manifest = tmp_path / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest())
    )
    refused(tmp_path, f"sample {sample} outside the shard")


def refused(folder: Path, problem: str) -> None:
    for use in (lambda corpus: corpus.lengths(2), lambda corpus: corpus.read(2, 0)):
        with pytest.raises(UserError, match=f"shard-000002.tar: .*{problem}"):
            use(open_corpus(str(folder)))


def test_missing_and_shortened_files_are_named(tmp_path: Path) -> None:
    write_corpus(tmp_path, SIZES)
    corpus = open_corpus(str(tmp_path))
    corpus.read(2, 0)
    os.truncate(tmp_path / "shard-000002.tar", 1024)  # while it is open
    with pytest.raises(
        UserError, match=r"shard-000002.tar: sample 5, field text: the shard ends before"
    ):
        corpus.read(2, 5)
    os.truncate(tmp_path / "shard-000003.idx.npy", 100)
    os.unlink(tmp_path / "shard-000000.tar")
    for shard, problem in ((0, "no such file"), (2, "it has 1024 bytes"), (3, "is not the index")):
        with pytest.raises(UserError, match=f"shard-00000{shard}.tar: .*{problem}"):
            open_corpus(str(tmp_path)).read(shard, 0)
