"""Shards of the pipeline against those of `build_shards`, whatever tasks are killed, failed or done twice."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from janus_pt.data.corpus import open_corpus
from janus_pt.data.manifest import InputFile, Shard, read_manifest
from janus_pt.data_prep.build_shards import CorpusRequest, build, make_manifest
from janus_pt.data_prep.pipeline import executors
from janus_pt.data_prep.pipeline.executors import run_task
from janus_pt.data_prep.pipeline.join import read_partials
from janus_pt.data_prep.pipeline.report import collect
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.shard_writer import PartialManifest, PartialShard, partial_path
from janus_pt.data_prep.pipeline.sources import SourceFile, portions
from janus_pt.data_prep.pipeline.stages import make_stages
from janus_pt.data_prep.pipeline.state import begin
from janus_pt.data_prep.verify_shards import verify
from janus_pt.utils.errors import UserError
from tests.support import planted
from tests.support.corpus_text import contents, document, tokenizer
from tests.support.planted import run_inline

DOCUMENTS = [document(number) for number in range(30)]


def write_documents(folder: Path, files: int = 3) -> None:
    for file in range(files):
        lines = [json.dumps({"text": text}) for text in DOCUMENTS[file * 10 : file * 10 + 10]]
        (folder / f"part-{file}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer.model").write_bytes(tokenizer().content)


def config(folder: Path, tasks: int = 1, output: str = "corpus", **more: Any) -> CorpusBuildConfig:
    values: dict[str, Any] = {
        "output": str(folder / output),
        "sources": [{"name": "s", "path": str(folder / "part-*.jsonl"), "format": "jsonl"}],
        "tasks": tasks,
        "tokenizer": {"path": str(folder / "tokenizer.model")},
        "shards": {"max_tokens": 64, "samples_per_shard": 200},
    }
    return CorpusBuildConfig.model_validate({**values, **more})


def shard_hashes(folder: Path) -> list[tuple[str, str]]:
    """sha256 of each shard and index, in the order of the manifest."""
    return [(shard.sha256, shard.index_sha256) for shard in read_manifest(folder).shards]


def samples(folder: Path) -> list[list[int]]:
    corpus = open_corpus(str(folder))
    found = []
    for shard, entry in enumerate(read_manifest(folder).shards):
        for row in range(entry.samples):
            found.append(corpus.read(shard, row)["text"].tolist())
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the documents, and the corpus `reference` of `build_shards`."""
    folder = tmp_path_factory.mktemp("shards")
    write_documents(folder)
    paths = tuple((str(path),) for path in sorted(folder.glob("part-*.jsonl")))
    request = CorpusRequest(paths, tokenizer(), max_tokens=64, samples_per_shard=200)
    build(request, folder / "reference", workers=1)
    return folder


def test_one_task_writes_the_shards_of_build_shards(built: Path) -> None:
    run_inline(config(built, output="one"))
    assert shard_hashes(built / "one") == shard_hashes(built / "reference")
    assert list(verify(built / "one", workers=1)) == []
    ours, theirs = read_manifest(built / "one"), read_manifest(built / "reference")
    assert [file.sha256 for file in ours.sources] == [file.sha256 for file in theirs.sources]
    assert ours.tokens == theirs.tokens and ours.tokenizer == theirs.tokenizer


def test_several_tasks_write_the_same_samples_in_the_same_order(built: Path) -> None:
    run_inline(config(built, tasks=3, output="three"))
    assert samples(built / "three") == samples(built / "reference")
    assert list(verify(built / "three", workers=1)) == []
    # Each shard names the file it is from.
    for shard in read_manifest(built / "three").shards:
        assert shard.sources == (int(shard.file[6:11]),)


def test_a_file_that_several_tasks_share_is_read_once(built: Path) -> None:
    first = {"name": "s", "path": str(built / "part-0.jsonl"), "format": "jsonl"}
    run_inline(config(built, tasks=4, output="shared", sources=[first]))
    request = CorpusRequest(((str(built / "part-0.jsonl"),),), tokenizer(), max_tokens=64)
    build(request, built / "part", workers=1)
    assert sorted(samples(built / "shared")) == sorted(samples(built / "part"))


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 64])
def test_every_record_is_read_by_one_task(tasks: int) -> None:
    sizes = (5, 1000, 0, 20, 20, 333, 4000)
    files = [SourceFile(0, f"file {number}", size) for number, size in enumerate(sizes)]
    read: dict[str, list[tuple[int, int]]] = {}
    loads = []
    for task in range(tasks):
        chosen = portions(files, task, tasks)
        loads.append(sum(file.size / parts for file, _, parts in chosen))
        for file, part, parts in chosen:
            read.setdefault(file.url, []).append((part, parts))
    for file in files:
        parts = read[file.url][0][1]
        assert sorted(read[file.url]) == [(part, parts) for part in range(parts)]
    assert max(loads) < 2.1 * sum(loads) / tasks or tasks == 64


def test_near_duplicates_are_found_where_the_first_task_has_one_document(tmp_path: Path) -> None:
    write_documents(tmp_path, files=0)
    rng = random.Random(1)
    twice = planted.document(rng)
    texts = [[planted.document(rng, sentences=12)]]
    texts += [[f"{twice} Copy {number}.", planted.document(rng)] for number in range(5)]
    for number, part in enumerate(texts):
        lines = [json.dumps({"text": text}) + "\n" for text in part]
        (tmp_path / f"part-{number}.jsonl").write_text("".join(lines))
    near = {"minhash": {"buckets": 2, "hashes_per_bucket": 2}}
    # Three tasks share a bucket, and datatrove would share it by the first task's hashes.
    build_config = config(tmp_path, tasks=6, deduplication=near)
    run_inline(build_config)
    assert collect(Path(build_config.work_folder), 10)["minhash"]["counts"] == {"removed": 4}


def test_tasks_done_again_or_twice_change_nothing(built: Path) -> None:
    build_config = config(built, tasks=3, output="again")
    run_inline(build_config)
    before = contents(built / "again")
    work = Path(build_config.work_folder)
    # Killed after the shards were moved and before the partial manifest; after it, and before datatrove's mark.
    partial_path(work, 0).unlink()
    (work / "logs" / "shards" / "completions" / "00000").unlink()
    (work / "logs" / "shards" / "completions" / "00001").unlink()
    run_inline(build_config)
    assert contents(built / "again") == before
    # A shard is gone, and datatrove's mark of its task is still there.
    (built / "again" / "shard-00002-000000.tar").unlink()
    run_inline(build_config)
    assert contents(built / "again") == before


class _Pool:
    """In this process; one that lost a process refuses tasks, as the real one does."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., str], *arguments: Any) -> Future[str]:
        if self.broken:
            raise BrokenProcessPool
        done: Future[str] = Future()
        done.set_result(function(*arguments))
        return done


def test_a_worker_that_dies_between_two_tasks_is_replaced(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = iter([_Pool(broken=True), _Pool(broken=False)])
    monkeypatch.setattr(executors, "worker_pool", lambda *_: next(pools))
    build_config = config(built, output="replaced")
    begin(build_config, overwrite=False)
    executors.run_local(build_config, workers=1)
    assert shard_hashes(built / "replaced") == shard_hashes(built / "reference")


def test_a_failed_task_leaves_the_others_work(built: Path, tmp_path: Path) -> None:
    for path in built.glob("part-*.jsonl"):
        shutil.copy(path, tmp_path)
    shutil.copy(built / "tokenizer.model", tmp_path)
    good = (tmp_path / "part-1.jsonl").read_text()
    lines = good.splitlines()
    lines[4] = '{"txet": "a field that was misspelt"}'
    # Of the same size, so that the build takes it for the same file.
    (tmp_path / "part-1.jsonl").write_text("\n".join(lines).ljust(len(good) - 1) + "\n")
    build_config = config(tmp_path, tasks=3)
    begin(build_config, overwrite=False)
    problems = [run_task(build_config.model_dump_json(), 0, rank) for rank in range(3)]
    assert problems[0] == problems[2] == ""
    assert problems[1].startswith(
        f'{tmp_path}/part-1.jsonl, line 5: no field "text" (it has: txet)'
    )
    join = len(make_stages(build_config)) - 1
    assert "task 1 has not finished" in run_task(build_config.model_dump_json(), join, 0)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    (tmp_path / "part-1.jsonl").write_text(good)
    run_inline(build_config)
    assert samples(tmp_path / "corpus") == samples(built / "reference")


def test_skipped_lines_are_counted_and_listed(built: Path, tmp_path: Path) -> None:
    write_documents(tmp_path)
    with (tmp_path / "part-2.jsonl").open("a") as file:
        file.write("no JSON\n")
    run_inline(config(tmp_path, tasks=2, on_error="skip"))
    manifest = read_manifest(tmp_path / "corpus")
    assert manifest.skipped == 1 and samples(tmp_path / "corpus") == samples(built / "reference")
    line = json.loads((tmp_path / "corpus" / "skipped.jsonl").read_text())
    assert line["line"] == 11 and line["file"].endswith("part-2.jsonl")


def test_another_number_of_tasks_or_other_settings_are_refused(built: Path) -> None:
    first = config(built, tasks=3, output="refused")
    begin(first, overwrite=False)
    with pytest.raises(UserError, match=r"tasks: this build was begun with 3.*run with --tasks 3"):
        begin(config(built, tasks=4, output="refused"), overwrite=False)
    with pytest.raises(UserError, match=r"changed: filters"):
        filters = {"language": {"keep": ["en"]}}
        begin(config(built, tasks=3, output="refused", filters=filters), overwrite=False)
    with pytest.raises(UserError, match=r"changed: files, sources"):
        other = {"name": "s", "path": str(built / "part-0.jsonl"), "format": "jsonl"}
        begin(config(built, tasks=3, output="refused", sources=[other]), overwrite=False)
    begin(config(built, tasks=4, output="refused"), overwrite=True)


def test_a_full_disk_is_one_message(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_config = config(built, output="full")
    begin(build_config, overwrite=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "shard-00000-000000.tar")

    monkeypatch.setattr("janus_pt.data_prep.writer.sync", full)
    problem = run_task(build_config.model_dump_json(), 0, 0)
    assert problem == "shard-00000-000000.tar: No space left on device: make room and run again"
    # Nothing half-written stays.
    assert list((built / "full").iterdir()) == []


def test_a_manifest_of_10000_tasks_is_joined_and_opens_fast(tmp_path: Path) -> None:
    hashes = tokenizer().fingerprint
    work = tmp_path / "work"
    partial_path(work, 0).parent.mkdir(parents=True)
    for rank in range(10_000):
        digest = hashlib.sha256(str(rank).encode()).hexdigest()
        shard = Shard(
            file=f"shard-{rank:05d}-000000.tar",
            samples=8192,
            tokens={"text": 4_000_000},
            bytes=12_000_000,
            sha256=digest,
            index_sha256=digest,
            first=rank * 10**9,
        )
        partial = PartialManifest(
            tokenizers=(hashes,), shards=(PartialShard(shard=shard, files=("a",)),), skipped=()
        )
        partial_path(work, rank).write_text(partial.model_dump_json(exclude_none=True))
    partials = read_partials(work, 10_000, [tokenizer()])
    shards = [
        entry.shard.model_copy(update={"sources": (0,)})
        for part in partials
        for entry in part.shards
    ]
    inputs = (InputFile(path="a", sha256=hashes, bytes=1),)
    manifest = make_manifest(CorpusRequest((("text",),), tokenizer()), inputs, shards, 0)
    manifest.write(tmp_path)
    begun = time.process_time()
    assert read_manifest(tmp_path).fingerprint == manifest.fingerprint
    assert time.process_time() - begun < 2.0


def test_a_tokenizer_is_trained_on_the_clean_text(built: Path) -> None:
    trained = {"vocab_size": 330, "sample_bytes": 100_000}
    run_inline(config(built, tasks=2, output="trained", tokenizer=trained))
    manifest = read_manifest(built / "trained")
    assert manifest.tokenizer.vocab_size == 330 and list(verify(built / "trained", workers=1)) == []
