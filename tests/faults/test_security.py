"""Nothing read from a user's path runs code or takes memory without bound, and what is secret stays so."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from janus_pt.checkpoint import store as checkpoint
from janus_pt.checks import read_config
from janus_pt.config.exported import CONFIG
from janus_pt.config.schema import ModelConfig
from janus_pt.data.corpus import open_corpus
from janus_pt.data.manifest import MAX_BYTES, read_manifest
from janus_pt.data_prep.verify_shards import verify
from janus_pt.export.folder import WEIGHTS, load_export, save_export
from janus_pt.tokenizer import MAX_TOKENIZER_BYTES, read_tokenizer
from janus_pt.utils.errors import UserError, reported, warn
from janus_pt.utils.redact import redact
from tests.support.corpora import write_corpus
from tests.support.models import SHAPE, tiny_model, tokenizer_bytes
from tests.support.runs import ROOT

MIB = 2**20
TOKENIZER = "tokenizer.model"


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def bomb(tmp_path: Path) -> bytes:
    content = pickle.dumps(Bomb(tmp_path / "exploded"))
    pickle.loads(content)
    (
        tmp_path / "exploded"
    ).unlink()  # it works, so a test that finds no file has seen no unpickling
    return content


@pytest.fixture
def export(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes(300))
    size = read_tokenizer(tokenizer_bytes(300)).vocab_size
    model = tiny_model(vocab_size=size)
    config = ModelConfig.model_validate({**SHAPE, "vocab_size": size})
    save_export(tmp_path / "export", model.state_dict(), config, tmp_path / "tokenizer.model")
    return tmp_path / "export"


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER])
def test_a_pickle_in_an_export_is_not_unpickled(
    tmp_path: Path, export: Path, bomb: bytes, name: str
) -> None:
    torch.save({"weight": Bomb(tmp_path / "exploded")}, export / name)
    with pytest.raises(UserError):
        load_export(export)
    (export / name).write_bytes(bomb)
    with pytest.raises(UserError):
        load_export(export)
    assert not (tmp_path / "exploded").exists()


def object_array(folder: Path, mark: Path) -> None:
    np.save(
        folder / "shard-000000.idx.npy", np.array([Bomb(mark)] * 9, dtype=object), allow_pickle=True
    )


def object_members(folder: Path, mark: Path) -> None:
    np.save(folder / "bomb.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        tar.add(folder / "bomb.npy", "000000000.text.npy")


def pickled_manifest(folder: Path, mark: Path) -> None:
    (folder / "manifest.json").write_bytes(pickle.dumps(Bomb(mark)))


@pytest.mark.parametrize("damage", [object_array, object_members, pickled_manifest])
def test_a_pickle_in_a_corpus_is_not_unpickled(
    tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    folder, mark = write_corpus(tmp_path / "corpus", [9]), tmp_path / "exploded"
    damage(folder, mark)
    with pytest.raises(UserError):
        open_corpus(str(folder)).read(0, 0)
    assert list(verify(folder, workers=1))
    assert not mark.exists()


def test_a_foreign_checkpoint_file_is_refused_before_it_is_unpickled(
    tmp_path: Path, bomb: bytes
) -> None:
    """DeepSpeed's files are pickles; without the hash that was listed when they were written nobody opens them."""
    folder = tmp_path / "step_1"
    folder.mkdir()
    (folder / "mp_rank_00_model_states.pt").write_bytes(b"as it was written")
    checkpoint.seal(folder)
    assert checkpoint.verify(folder) is None
    (folder / "mp_rank_00_model_states.pt").write_bytes(bomb)
    assert "mp_rank_00_model_states.pt" in str(checkpoint.verify(folder))
    assert not (tmp_path / "exploded").exists()


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def modules_used(node: ast.ImportFrom) -> list[str]:
    """The module of a `from` import; none if it gives the name of an exception only."""
    harmless = [alias.name for alias in node.names] == ["UnpicklingError"]
    return [] if harmless else [node.module or ""]


@pytest.mark.parametrize("room", ["janus_pt", "data_prep", "launchers"])
def test_no_code_of_ours_can_unpickle(room: str) -> None:
    found = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += modules_used(node) if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in UNSAFE for name in names):
                found.append(f"{path}:{node.lineno}: imports {names}")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if called in ("eval", "exec", "pd.read_pickle"):
                    found.append(f"{path}:{node.lineno}: calls {called}")
                if called.endswith("np.load") and given.get("allow_pickle") != "False":
                    found.append(f"{path}:{node.lineno}: np.load without allow_pickle=False")
                if called == "torch.load" and given.get("weights_only") != "True":
                    found.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../up.npy", "a/../../up.npy", "./000000000.text.npy"]
)
def test_tar_members_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_corpus(tmp_path / "corpus", [3])
    with (
        tarfile.open(folder / "shard-000000.tar") as old,
        tarfile.open(tmp_path / "new.tar", "w") as new,
    ):
        for number, member in enumerate(old):
            content = old.extractfile(member)
            member.name = name if number == 1 else member.name
            new.addfile(member, content)
    shutil.copy(tmp_path / "new.tar", folder / "shard-000000.tar")
    assert any(
        f"member {name} where 000000001.text.npy should be" in problem
        for problem in verify(folder, 1)
    )


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_tar_members_that_are_no_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    folder = write_corpus(tmp_path / "corpus", [3])
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        member = tarfile.TarInfo("000000000.text.npy")
        member.type, member.linkname = kind, "000000000.text.npy"
        tar.addfile(member)
    assert any("000000000.text.npy: is no plain file" in problem for problem in verify(folder, 1))


@pytest.mark.parametrize("name", ["../x.tar", "/etc/x.tar", "a/b.tar", "..tar"])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    path = write_corpus(tmp_path / "corpus", [3]) / "manifest.json"
    path.write_text(path.read_text().replace("shard-000000.tar", name))
    with pytest.raises(UserError, match=r"shards.0.file"):
        read_manifest(path.parent)


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()


def absurd_manifest(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(MAX_BYTES + 1)


def absurd_samples(folder: Path) -> None:
    """Ten billion samples in a shard, by all the manifest says."""
    content = json.loads((folder / "manifest.json").read_text())
    content["samples"] = content["shards"][0]["samples"] = 10**10
    content["shards"][0]["bytes"] = 10**14
    (folder / "manifest.json").write_text(json.dumps(content))


def absurd_index(folder: Path) -> None:
    with (folder / "shard-000000.idx.npy").open("r+b") as file:
        file.truncate(10**12)


def absurd_header(folder: Path) -> None:
    """An index whose header promises 8 TB, listed by the manifest as it is."""
    path = folder / "shard-000000.idx.npy"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    content = path.read_bytes().replace(b"(3, 3), }               ", b"(333333333333, 3), }    ")
    assert b"333333333333" in content
    path.write_bytes(content)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, hashlib.sha256(content).hexdigest()))


@pytest.mark.parametrize("damage", [absurd_manifest, absurd_samples, absurd_index, absurd_header])
def test_absurd_sizes_in_a_corpus_take_no_memory(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = write_corpus(tmp_path / "corpus", [3])
    expected = open_corpus(str(folder)).read(0, 0)["text"].tolist()
    damage(folder)
    with little_memory():
        if damage is absurd_header:  # no header is believed
            assert open_corpus(str(folder)).read(0, 0)["text"].tolist() == expected
        else:
            with pytest.raises(UserError):
                open_corpus(str(folder)).read(0, 0)
        assert any(list(verify(folder, workers=1)))


def absurd_weights(folder: Path) -> None:
    """A safetensors header of 90 MB, and one that promises a terabyte."""
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    ).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def absurd_model(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    content["model"].update(hidden_size=1 << 20, ffn_hidden_size=1 << 20, vocab_size=1 << 40)
    (folder / CONFIG).write_text(json.dumps(content))


def absurd_layers(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    content["model"].update(encoder_layers=1 << 40)
    (folder / CONFIG).write_text(json.dumps(content))


def absurd_tokenizer(folder: Path) -> None:
    with (folder / TOKENIZER).open("r+b") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    content = json.loads((folder / CONFIG).read_text())
    content["tokenizer_sha256"] = hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(content))


def absurd_config(folder: Path) -> None:
    with (folder / CONFIG).open("r+b") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    "damage", [absurd_weights, absurd_model, absurd_layers, absurd_tokenizer, absurd_config]
)
def test_absurd_sizes_in_an_export_take_no_memory(
    export: Path, damage: Callable[[Path], None]
) -> None:
    damage(export)
    with little_memory(), pytest.raises(UserError):
        load_export(export)


def test_a_configuration_of_absurd_size_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_config(tmp_path / "config.json")


SECRETS = [
    ("http://me:pa/ss@w@host:80/x", "http://me:***@host:80/x"),
    ('{"a": "s3://k:v@b", "c": "x@y"}', '{"a": "s3://k:***@b", "c": "x@y"}'),
    ("http://host:80/x and me@home", "http://host:80/x and me@home"),
    ("sqlite:///runs/mlflow.db", "sqlite:///runs/mlflow.db"),
    ("https://dapi0123@host/x", "https://***@host/x"),
    (
        "mysql://host/db?user=me&password=abc&timeout=5",
        "mysql://host/db?user=me&password=***&timeout=5",
    ),
    ("https://b.example/c?sv=1&sig=a%2Fb%3D", "https://b.example/c?sv=1&sig=***"),
    ("https://h/?access_token=abc#top", "https://h/?access_token=***#top"),
    ("http://[::1]:5000/?page=2", "http://[::1]:5000/?page=2"),
]


@pytest.mark.parametrize(("text", "expected"), SECRETS)
def test_secrets_in_uris_are_masked(text: str, expected: str) -> None:
    assert redact(text) == expected and redact(expected) == expected


def test_messages_show_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    warn("https://me:secret@host/manifest.json: cannot be read")
    with pytest.raises(SystemExit), reported():
        raise UserError("https://me:secret@host/manifest.json: cannot be read")
    output = capsys.readouterr().err
    assert "secret" not in output and output.count("https://me:***@host/manifest.json") == 2


def test_the_documentation_opens_no_port_to_the_world() -> None:
    """MLflow's own default is 127.0.0.1 (seen in `test_mlflow_server.py`); no command of ours changes it."""
    texts = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "Makefile",
        *ROOT.glob("launchers/**/*"),
    ]
    for path in (path for path in texts if path.is_file() and path.suffix != ".pyc"):
        assert "0.0.0.0" not in path.read_text(), path
