"""`janus-pt prep corpus`: configuration, dry run, executors, and builds that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from janus_pt.config.reader import read_section
from janus_pt.config.shipped import shipped_configs
from janus_pt.data.manifest import read_manifest
from janus_pt.data_prep.pipeline.reference import corpus_reference
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig, problems
from janus_pt.data_prep.verify_shards import verify
from janus_pt.utils.errors import UserError
from tests.data_prep.pipeline.test_shards import DOCUMENTS, samples, shard_hashes, write_documents
from tests.support.runs import ROOT, environment

COMMAND = [str(Path(sys.executable).with_name("janus-pt")), "prep", "corpus", "--config"]


def write_config(folder: Path, output: str = "corpus", **more: Any) -> Path:
    values: dict[str, Any] = {
        "output": str(folder / output),
        "sources": [{"name": "s", "path": str(folder / "part-*.jsonl"), "format": "jsonl"}],
        "deduplication": {"exact": ["text"], "minhash": {"buckets": 2, "numbers_as_zero": False}},
        "tokenizer": {"path": str(folder / "tokenizer.model")},
        "shards": {"max_tokens": 64, "samples_per_shard": 200},
    }
    path = folder / f"{output}.json"
    path.write_text(json.dumps({**values, **more}, indent=1))
    return path


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=500)


@pytest.mark.parametrize("name", shipped_configs(corpora=True))
def test_shipped_configurations_are_valid(name: str) -> None:
    assert read_section(name, [], CorpusBuildConfig, problems).tasks == 64


def test_the_reference_is_made_from_the_schema() -> None:
    page = (ROOT / "docs/reference/corpora.md").read_text()
    command = "python -m janus_pt.data_prep.pipeline.reference > docs/reference/corpora.md"
    assert page == corpus_reference(), f"the schema has changed: {command}"


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text("""{
        "output": "corpus",
        "sources": [{"name": "a b", "path": "x", "fromat": "jsonl"}],
        "filters": {"language": {"keep": [], "threshold": 65}},
        "tasks": "4",
        "max_tokens": 510
    }""")
    with pytest.raises(UserError) as error:
        read_section(path, ["shards.samples_per_shard=0"], CorpusBuildConfig, problems)
    lines = str(error.value).splitlines()
    assert lines[0] == "7 problems in the configuration:"
    expected = [
        ":3: sources.0.name:",
        ':3: sources.0.fromat: unknown key; did you mean "format"?',
        ":4: filters.language.keep: needs at least 1 items, but has 0",
        ":4: filters.language.threshold: must be at most 1, but is 65",
        ':5: tasks: expected a whole number, got "4": write it without quotes',
        ":6: max_tokens: unknown key here; it belongs in shards.max_tokens",
        "shards.samples_per_shard: must be greater than 0, but is 0",
    ]
    for line, part in zip(lines[1:], expected, strict=True):
        assert part in line


def test_keys_that_do_not_go_together(tmp_path: Path) -> None:
    sources = [
        {"name": "a", "path": "x", "format": "moses"},
        {"name": "a", "path": "x", "format": "warc"},
    ]
    path = write_config(tmp_path, kind="pairs", sources=sources, filters={"c4": {}})
    with pytest.raises(UserError) as error:
        read_section(path, [], CorpusBuildConfig, problems)
    for part in (
        "sources.0.target_path: goes with format moses, which needs it",
        "sources.1.format: pairs come from jsonl, parquet, tsv, tmx, moses",
        "sources: two sources have one name",
        "filters: are for documents: use pair_filters",
        "deduplication.exact: pairs have no text: use pair, source, target",
        "deduplication.minhash: is for documents",
    ):
        assert part in str(error.value)


def test_a_dry_run_estimates_and_writes_nothing(tmp_path: Path) -> None:
    write_documents(tmp_path)
    done = run(write_config(tmp_path), "--dry-run", "--tasks", "8", "--workers", "2")
    assert done.returncode == 0, done.stderr
    # The files are alike, so the estimate from one is right.
    assert "3 files" in done.stdout and "about 30 documents" in done.stdout
    for stage in ("clean", "exact_text_sign", "minhash_buckets", "shards", "join"):
        assert stage in done.stdout
    assert not (tmp_path / "corpus").exists() and not (tmp_path / "corpus.build").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_builds_that_are_killed_give_the_same_bytes(tmp_path: Path) -> None:
    """Single workers, which are replaced, and the whole group in turn; `JANUS_KILLS` sets how often."""
    write_documents(tmp_path)
    arguments = ("--tasks", "3", "--workers", "2")
    exact = {"exact": ["text"]}
    assert run(write_config(tmp_path, deduplication=exact), *arguments).returncode == 0
    path = write_config(tmp_path, "killed", deduplication=exact)
    rng = random.Random(7)
    kills = 0
    wanted = int(os.environ.get("JANUS_KILLS", "3"))
    while kills < wanted:
        process = subprocess.Popen(
            [*COMMAND, str(path), *arguments],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        kills += kill_sometime(process, rng, whole=kills % 2 == 0)
        process.wait(timeout=500)
        if kills < wanted and (tmp_path / "killed" / "manifest.json").exists():
            # Finished between two kills: one task again.
            (tmp_path / "killed" / "shard-00001-000000.tar").unlink()
    assert run(path, *arguments).returncode == 0
    assert shard_hashes(tmp_path / "killed") == shard_hashes(tmp_path / "corpus")
    assert (
        read_manifest(tmp_path / "killed").fingerprint
        == read_manifest(tmp_path / "corpus").fingerprint
    )
    assert list(verify(tmp_path / "killed", workers=1)) == []
    # Nobody is left, and nothing but the corpus.
    assert not list((tmp_path / "killed").glob(".attempt-*"))
    assert sum(len(sample) for sample in samples(tmp_path / "killed")) > 10 * len(DOCUMENTS)


def kill_sometime(process: subprocess.Popen[bytes], rng: random.Random, whole: bool) -> int:
    """Kill the group, or one worker, at a random time of a build; 0 if it ended before."""
    time.sleep(rng.uniform(0.5, 4.0))
    if process.poll() is not None:
        return 0
    if whole:
        os.killpg(process.pid, signal.SIGKILL)
        return 1
    workers = psutil.Process(process.pid).children(recursive=True)
    try:
        rng.choice(workers or [psutil.Process(process.pid)]).kill()
    except psutil.NoSuchProcess:
        return 0
    return 1
