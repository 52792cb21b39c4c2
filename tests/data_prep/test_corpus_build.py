"""Building corpora: what `webdataset` reads is the text, the same bytes whatever the workers and interruptions."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset

from janus_pt.data.manifest import read_manifest
from janus_pt.data_prep.build_shards import CorpusRequest, build
from janus_pt.data_prep.journal import Journal
from janus_pt.data_prep.train_tokenizer import sample_sentences, train
from janus_pt.data_prep.verify_shards import verify
from janus_pt.data_prep.writer import ShardFile
from janus_pt.utils.errors import UserError
from tests.support.corpus_text import contents, document, sentence, tokenizer
from tests.support.runs import run_script

ROOT = Path(__file__).parents[2]
NOVELS = Path(
    os.environ.get("JANUS_SHARED", ROOT.parent / "shared"),
    "data/pretrain/en_100_english_novels.jsonl.xz",
)
DOCUMENTS = [document(i) for i in range(30)]


@pytest.fixture(scope="module", autouse=True)
def small_items() -> Iterator[None]:
    """Several work items in little text, so that shards end inside and between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("janus_pt.data_prep.inputs.ITEM_CHARACTERS", 9000)
        yield


@pytest.fixture(scope="module")
def request_all(tmp_path_factory: pytest.TempPathFactory) -> CorpusRequest:
    file = tmp_path_factory.mktemp("input") / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return CorpusRequest(((str(file),),), tokenizer(), max_tokens=64, samples_per_shard=200)


@pytest.fixture(scope="module")
def corpus(request_all: CorpusRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    build(request_all, folder, workers=2)
    return folder


def small(file: Path, **more: int) -> CorpusRequest:
    return CorpusRequest(((str(file),),), tokenizer(), **more)


def samples_of(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    shards = [str(folder / shard.file) for shard in read_manifest(folder).shards]
    yield from webdataset.WebDataset(shards, shardshuffle=False).decode()


def test_webdataset_reads_every_sample(corpus: Path) -> None:
    samples = list(samples_of(corpus))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(len(samples))]
    text = "".join(tokenizer().decode(sample["text.npy"]) for sample in samples)
    assert "".join(text.split()) == "".join("".join(DOCUMENTS).split())
    manifest = read_manifest(corpus)
    assert manifest.samples == len(samples)
    assert manifest.tokens == {"text": sum(len(sample["text.npy"]) for sample in samples)}
    assert {sample["text.npy"].dtype for sample in samples} == {np.dtype(manifest.dtype)}
    assert [shard.samples for shard in manifest.shards[:-1]] == [200] * (len(manifest.shards) - 1)


def test_a_shard_is_what_webdatasets_writer_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    samples = [
        (np.arange(2, dtype="<u2"), rng.integers(0, 999, length).astype("<u2"))
        for length in (0, 1, 190, 200, 510)
    ]
    (tmp_path / "ours").mkdir()
    file = ShardFile(tmp_path / "ours", 0, ("source", "target"))
    theirs = tmp_path / "theirs.tar"
    with webdataset.TarWriter(str(theirs), user="janus_pt", group="janus_pt", mtime=0) as writer:
        for number, (source, target) in enumerate(samples, start=10**12):
            file.write(number, (source, target))
            writer.write({"__key__": str(number), "source.npy": source, "target.npy": target})
    file.close()
    assert (tmp_path / "ours" / "shard-000000.tar").read_bytes() == theirs.read_bytes()


def test_the_index_points_at_the_tokens(corpus: Path) -> None:
    samples = samples_of(corpus)
    for shard in read_manifest(corpus).shards:
        content = (corpus / shard.file).read_bytes()
        for offset, count, checksum in np.load(corpus / shard.index_file, allow_pickle=False):
            ids = np.frombuffer(content, dtype="<u2", count=count, offset=offset)
            np.testing.assert_array_equal(ids, next(samples)["text.npy"])
            assert checksum == zlib.crc32(ids.tobytes())


def test_parallel_corpus(tmp_path: Path) -> None:
    sources, targets = [sentence(i) for i in range(60)], [sentence(i + 7) for i in range(60)]
    (tmp_path / "a.src").write_text("\n".join(sources))
    (tmp_path / "a.tgt.gz").write_bytes(gzip.compress("\n".join(targets).encode()))
    request = CorpusRequest(
        ((str(tmp_path / "a.src"), str(tmp_path / "a.tgt.gz")),), tokenizer(), samples_per_shard=25
    )
    manifest = build(request, tmp_path / "corpus", workers=1)
    assert (manifest.fields, manifest.samples, len(manifest.shards)) == (
        ("source", "target"),
        60,
        3,
    )
    for name, lines in (("source", sources), ("target", targets)):
        assert [
            tokenizer().decode(sample[f"{name}.npy"]) for sample in samples_of(tmp_path / "corpus")
        ] == lines
    index = np.load(tmp_path / "corpus" / manifest.shards[2].index_file, allow_pickle=False)
    content = (tmp_path / "corpus" / manifest.shards[2].file).read_bytes()
    source, source_count, _, target, target_count, _ = index[3]
    assert tokenizer().decode(np.frombuffer(content, "<u2", source_count, source)) == sources[53]
    assert tokenizer().decode(np.frombuffer(content, "<u2", target_count, target)) == targets[53]
    assert list(verify(tmp_path / "corpus", workers=1)) == []


class Killed(BaseException):
    """Ends a build as abruptly as can be within the process."""


@pytest.mark.parametrize("shards_before", [1, 2])
def test_a_broken_build_goes_on_to_the_same_bytes(
    corpus: Path, request_all: CorpusRequest, tmp_path: Path, shards_before: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        add = Journal.add

        def add_or_die(journal: Journal, *arguments: object) -> None:
            if len(journal.shards) == shards_before:
                raise Killed  # the shard is there, its line in the journal is not
            add(journal, *arguments)  # type: ignore[arg-type]

        patch.setattr(Journal, "add", add_or_die)
        with pytest.raises(Killed):
            build(request_all, tmp_path, workers=2)
    assert not (tmp_path / "manifest.json").exists()
    with (tmp_path / "build.jsonl").open("ab") as journal:
        journal.write(b'{"shard": {"fi')  # a line the kill cut short
    first = (tmp_path / "shard-000000.tar").stat().st_mtime_ns
    build(request_all, tmp_path, workers=1)
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == first
    assert contents(tmp_path) == contents(corpus)


def test_a_finished_corpus_is_left_alone(
    corpus: Path, request_all: CorpusRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(corpus)
    build(request_all, corpus)
    assert "finished already" in capsys.readouterr().out
    assert contents(corpus) == before


def test_other_arguments_need_another_folder_or_overwrite(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "corpus"
    file.write_text(document(1))
    build(small(file), folder, workers=1)
    changed = small(file, max_tokens=20)
    with pytest.raises(UserError, match=r"changed: max_tokens.*--overwrite"):
        build(changed, folder, workers=1)
    file.write_text(document(2))
    with pytest.raises(UserError, match="changed: inputs"):
        build(small(file), folder, workers=1)
    manifest = build(changed, folder, workers=1, overwrite=True)
    assert manifest.max_tokens == 20
    assert list(verify(folder, workers=1)) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letters.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        build(changed, tmp_path / "other", workers=1)


def test_skipped_lines_are_in_the_manifest_and_listed(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.jsonl", tmp_path / "corpus"
    file.write_bytes(b'{"text": "One."}\n{"text": 1}\n{"text": "Two."}\n\xff\n')
    with pytest.raises(UserError, match="line 2"):
        build(small(file), folder, workers=1)
    assert not (folder / "manifest.json").exists()
    manifest = build(small(file), folder, workers=1, on_error="skip")
    listed = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert (manifest.skipped, manifest.samples) == (2, 2)
    assert [(line["file"], line["line"]) for line in listed] == [(str(file), 2), (str(file), 4)]
    build(small(file), folder, workers=1)
    assert list(verify(folder, workers=1)) == []


def test_a_folder_is_built_by_one_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {}, overwrite=False)
    with pytest.raises(UserError, match="another process"):
        Journal(tmp_path, {}, overwrite=True)
    journal.close()
    Journal(tmp_path, {}, overwrite=True).close()


def test_a_build_killed_before_its_first_shard_begins_anew(tmp_path: Path) -> None:
    for name in ("build.jsonl", "shard-000009.tar", "shard-000000.tar.tmp"):
        (tmp_path / name).touch()
    Journal(tmp_path, {}, overwrite=False).close()
    assert not list(tmp_path.glob("shard-*"))


def test_no_text_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n \n")
    with pytest.raises(UserError, match="no text"):
        build(small(tmp_path / "a.txt"), tmp_path / "corpus", workers=1)
    assert not (tmp_path / "corpus" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "none.txt"], "none.txt: cannot be read"),
        (["--input", "a.pdf"], "takes .txt and .jsonl"),
        (["--source", "a.de"], "--source has 1 files and --target 0"),
        (["--input", "a.txt", "--source", "a.de", "--target", "a.en"], "either --input"),
        (["--input", "a.txt", "--max-tokens", "4"], "--max-tokens must be at least 16"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    tokenizer().save(tmp_path / "t.model")
    monkeypatch.chdir(tmp_path)
    files = ("--output", "corpus", "--tokenizer", "t.model")
    assert run_script(monkeypatch, "data_prep/build_shards.py", *files, *arguments) == 2
    assert message in capsys.readouterr().err


def command(file: Path, folder: Path, *more: str) -> list[str]:
    script = [sys.executable, str(ROOT / "data_prep/build_shards.py"), "--input", str(file)]
    return [
        *script,
        "--tokenizer",
        str(folder.parent / "t.model"),
        "--output",
        str(folder),
        "--workers",
        "2",
        *more,
    ]


@pytest.mark.slow
def test_kill_nine_and_again(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": document(i)}) + "\n" for i in range(1200)))
    more = ("--samples-per-shard", "500", "--max-tokens", "64")
    tokenizer().save(tmp_path / "t.model")
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    for shards in (1, 5):
        process = subprocess.Popen(command(file, broken, *more), stderr=subprocess.DEVNULL)
        children: list[psutil.Process] = []
        journal = broken / "build.jsonl"
        while not journal.exists() or journal.read_bytes().count(b"\n") <= shards:
            assert process.poll() is None, "the build ended before it could be killed"
            children = psutil.Process(process.pid).children(recursive=True) or children
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (broken / "manifest.json").exists()
        alive = psutil.wait_procs(children, timeout=10)[1]
        assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive), (
            "workers outlive the build"
        )
    subprocess.run(command(file, broken, *more), check=True, capture_output=True)
    subprocess.run(command(file, unbroken, *more), check=True, capture_output=True)
    assert contents(broken) == contents(unbroken)


@pytest.mark.slow
@pytest.mark.skipif(not NOVELS.exists(), reason=f"{NOVELS} is not there (set JANUS_SHARED)")
def test_memory_stays_below_a_gigabyte_on_novels(tmp_path: Path) -> None:
    train(sample_sentences([str(NOVELS)], "text", 1_000_000), 4000).save(tmp_path / "t.model")
    process = subprocess.Popen(command(NOVELS, tmp_path / "corpus"), stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        used = 0
        for one in [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]:
            try:
                used += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, used)
        time.sleep(0.05)
    assert process.returncode == 0
    assert 50e6 < peak < 1e9
