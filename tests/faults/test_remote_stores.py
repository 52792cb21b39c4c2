"""A remote store that is slow, fails, or sends half a file: tried again, then one clear message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from janus_pt.data import files
from janus_pt.data.corpus import open_corpus
from janus_pt.utils.errors import UserError
from tests.faults.misbehaving_server import Server, serving
from tests.support.corpora import write_corpus

SHARD, INDEX, MANIFEST = "shard-000000.tar", "shard-000000.idx.npy", "manifest.json"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(files, "DELAYS", (0.01, 0.02, 0.04))
    monkeypatch.setattr(files, "STALL_SECONDS", 0.3)
    write_corpus(tmp_path / "corpus", [5])
    with serving(tmp_path / "corpus") as server:
        yield server


def read(server: Server, cache: Path) -> list[list[int]]:
    corpus = open_corpus(server.url, str(cache))
    return [corpus.read(0, sample)["text"].tolist() for sample in range(5)]


def expected(server: Server) -> list[list[int]]:
    local = open_corpus(str(server.folder))
    return [local.read(0, sample)["text"].tolist() for sample in range(5)]


@pytest.mark.parametrize("file", [MANIFEST, INDEX, SHARD])
@pytest.mark.parametrize("fault", ["error", "half", "stall", "slow"])
def test_a_passing_failure_is_retried(
    server: Server, tmp_path: Path, file: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults[file] = [fault, fault, fault]
    assert read(server, tmp_path / "cache") == expected(server)
    output = capsys.readouterr().err
    assert (
        output.count("trying again in") == (0 if fault == "slow" else 3)
        and "Traceback" not in output
    )
    assert not [path for path in (tmp_path / "cache").rglob(".*.partial*")]


@pytest.mark.parametrize("file", [MANIFEST, INDEX, SHARD])
@pytest.mark.parametrize("fault", ["error", "half", "stall"])
def test_a_lasting_failure_ends_in_one_message(
    server: Server, tmp_path: Path, file: str, fault: str
) -> None:
    server.faults[file] = [fault] * 9
    with pytest.raises(UserError) as caught:
        read(server, tmp_path / "cache")
    assert f"{server.url}/{file}: cannot be read: " in str(caught.value) and "\n" not in str(
        caught.value
    )
    assert server.gets.count(file) == 4
    assert not isinstance(
        caught.value, files.Damaged
    )  # never left out: tomorrow the server may be back


@pytest.mark.parametrize("file", [INDEX, SHARD])
def test_content_that_is_always_another_is_damage(
    server: Server, tmp_path: Path, file: str
) -> None:
    server.faults[file] = ["other content"] * 9
    with pytest.raises(
        UserError, match=f"{file}: its sha256 is .* damaged or has been replaced"
    ) as caught:
        read(server, tmp_path / "cache")
    assert isinstance(caught.value, files.Damaged) == (file == SHARD)  # an index is never left out
    assert server.gets.count(file) == 4


def test_a_missing_file_is_not_requested_again(server: Server, tmp_path: Path) -> None:
    (server.folder / SHARD).unlink()
    with pytest.raises(files.Damaged, match=f"{SHARD}: no such file"):
        read(server, tmp_path / "cache")
    assert server.gets.count(SHARD) <= 1


def test_a_server_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "DELAYS", (0.01,))
    with pytest.raises(
        UserError, match=r"http://127.0.0.1:9/manifest.json: cannot be read: ClientConnector"
    ):
        open_corpus("http://127.0.0.1:9")


def test_half_a_download_left_by_a_kill_is_not_taken_for_a_file(
    server: Server, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shard = open_corpus(server.url, str(cache)).manifest.shards[0]
    folder = cache / shard.sha256[:2]
    folder.mkdir(parents=True)
    (folder / f".{shard.sha256}.tar.partial0123").write_bytes(np.random.default_rng(0).bytes(100))
    assert read(server, cache) == expected(server)
