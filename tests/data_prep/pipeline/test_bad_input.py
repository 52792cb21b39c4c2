"""Whole builds on bad input: what is wrong is named by file and place, and everything else stays usable."""

from __future__ import annotations

import gzip
import io
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from warcio.warcwriter import WARCWriter

from janus_pt.data import files
from janus_pt.data_prep.pipeline.executors import run_task
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.stages import make_stages
from janus_pt.data_prep.pipeline.state import begin
from janus_pt.utils.errors import UserError
from tests.data_prep.pipeline.test_shards import DOCUMENTS, config, samples, write_documents
from tests.faults.misbehaving_server import serving
from tests.support.corpus_text import corpus_files
from tests.support.planted import run_inline


def run_stages(build: CorpusBuildConfig) -> dict[tuple[str, int], str]:
    """All tasks, up to the end of a stage in which one failed; what went wrong, by stage and task."""
    begin(build, overwrite=False)
    problems = {}
    for index, stage in enumerate(make_stages(build)):
        for rank in range(stage.tasks):
            if problem := run_task(build.model_dump_json(), index, rank):
                problems[stage.name, rank] = problem
        if problems:
            break
    return problems


def finished(build: CorpusBuildConfig, stage: str) -> set[str]:
    """Tasks that datatrove takes for finished."""
    folder = Path(build.work_folder) / "logs" / stage / "completions"
    return {path.name for path in folder.glob("*")}


def write_file(path: Path, texts: list[str]) -> None:
    """Documents in the format that the suffix says."""
    form = path.suffixes[0].removeprefix(".")
    if form == "jsonl":
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        path.write_bytes(gzip.compress(lines.encode()))
    elif form == "parquet":
        # Whole groups of rows come before the end, which a reader looks for first.
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=2)
    else:
        with path.open("wb") as output:
            writer = WARCWriter(output, gzip=True)
            for text in texts:
                content = io.BytesIO(text.encode())
                uri = "http://example.org/"
                record = writer.create_warc_record(uri, "conversion", payload=content)
                writer.write_record(record)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet", ".warc.gz"])
def test_a_file_that_was_cut_short_stops_its_task_alone(suffix: str, tmp_path: Path) -> None:
    write_documents(tmp_path, files=0)
    paths = [tmp_path / f"part-{number}{suffix}" for number in range(3)]
    for number, path in enumerate(paths):
        write_file(path, DOCUMENTS[number * 10 : number * 10 + 10])
    listed = {"name": "s", "path": f"{tmp_path}/part-*{suffix}", "format": suffix.split(".")[1]}
    # Bad lines may be skipped; the rest of a file must not be.
    values: dict[str, Any] = {"tasks": 3, "sources": [listed], "on_error": "skip"}
    values["deduplication"] = {"exact": ["text"]}
    run_inline(config(tmp_path, output="whole", **values))

    build, content = config(tmp_path, **values), paths[1].read_bytes()
    # In the middle of the seventh of ten records: a WARC file that ends between two is a whole one.
    paths[1].write_bytes(content[: len(content) * 65 // 100])
    problems = run_stages(build)
    assert problems["clean", 1].startswith(f"{paths[1]}: damaged or cut short after")
    assert set(problems) == {("clean", 1)}
    assert finished(build, "clean") == {"00000", "00002"}
    assert not (Path(build.output) / "manifest.json").exists()
    before = documents_written(build)
    assert set(before) == {"00000.jsonl.zst", "00002.jsonl.zst"}

    paths[1].write_bytes(content)
    run_inline(build)
    after = documents_written(build)
    assert {name: after[name] for name in before} == before
    assert corpus_files(tmp_path / "corpus") == corpus_files(tmp_path / "whole")


def documents_written(build: CorpusBuildConfig) -> dict[str, int]:
    """When each file of cleaned documents was written."""
    folder = Path(build.work_folder) / "documents"
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_file_that_was_read_and_changed_is_refused(tmp_path: Path) -> None:
    write_documents(tmp_path)
    build = config(tmp_path, tasks=3)
    begin(build, overwrite=False)
    assert not run_task(build.model_dump_json(), 0, 1)
    with (tmp_path / "part-1.jsonl").open("a") as file:
        file.write('{"text": "One more."}\n')
    with pytest.raises(UserError, match=r"part-1.jsonl: has [\d,]+ bytes, and had [\d,]+ when"):
        begin(build, overwrite=False)


def test_a_server_that_answers_503_is_named_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DELAYS", (0.01,) * 5)
    write_documents(tmp_path)
    run_inline(config(tmp_path, output="local"))
    with serving(tmp_path) as server:
        listed = [
            {"name": f"s{number}", "path": f"{server.url}/part-{number}.jsonl", "format": "jsonl"}
            for number in range(3)
        ]
        build = config(tmp_path, tasks=3, sources=listed)
        begin(build, overwrite=False)
        server.faults = {"part-0.jsonl": ["error"] * 2, "part-1.jsonl": ["error"] * 100}
        problems = run_stages(build)
        assert set(problems) == {("shards", 1)}
        assert problems["shards", 1].startswith(f"{server.url}/part-1.jsonl: cannot be read")
        assert "503" in problems["shards", 1]
        assert finished(build, "shards") == {"00000", "00002"}
        server.faults = {}
        run_inline(build)
    assert samples(tmp_path / "corpus") == samples(tmp_path / "local")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes, as on a disk that fills."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_stops_any_stage_and_the_build_goes_on_with_room(tmp_path: Path) -> None:
    write_documents(tmp_path)
    values: dict[str, Any] = {"tasks": 2}
    values["deduplication"] = {"exact": ["text"], "minhash": {"buckets": 2}}
    run_inline(config(tmp_path, output="whole", **values))
    build = config(tmp_path, **values)
    stopped = set()
    for size in (1_000, 3_000, 10_000, 30_000, 100_000):
        with largest_file(size):
            problems = run_stages(build)
        for (stage, _), problem in problems.items():
            stopped.add(stage)
            assert problem.endswith("File too large: make room and run again"), problem
        assert (tmp_path / "corpus" / "manifest.json").exists() != bool(problems)
    assert len(stopped) > 1, stopped
    run_inline(build)
    assert corpus_files(tmp_path / "corpus") == corpus_files(tmp_path / "whole")
