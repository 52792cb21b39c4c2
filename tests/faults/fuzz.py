"""Fuzz the readers of config, manifest, index, tar and safetensors with broken and hostile inputs.

    python -m tests.faults.fuzz --inputs 100000 [--seed S] [--reader NAME]

Inputs are whole files changed at random: bytes flipped, cut, doubled and moved, and values of their JSON put in place
of others. Where a hash stands in the way, it is made to fit. A reader may take an input or raise `UserError`; another
exception, more than 10 seconds, or more than 1 GiB ends the run with exit code 1 and the smallest such input that
hypothesis finds.
"""

# ruff: noqa: E402 - a script finds the project only once it has said where it is

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from janus_pt.checks import read_config
from janus_pt.config.exported import CONFIG
from janus_pt.config.schema import ModelConfig
from janus_pt.data.corpus import open_corpus
from janus_pt.data.manifest import read_manifest
from janus_pt.data_prep.verify_shards import ShardCheck, check_shard
from janus_pt.export.folder import WEIGHTS, load_export, save_export
from janus_pt.tokenizer import load_tokenizer, read_tokenizer
from janus_pt.utils.errors import UserError
from tests.support.corpora import write_corpus
from tests.support.models import SHAPE, tiny_model, tokenizer_bytes
from tests.support.runs import write_run_config
from tests.tokenizer.texts import bart_json

SECONDS, MEMORY = 10, 2**30
Reader = Callable[[bytes], None]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def config_reader(folder: Path) -> tuple[bytes, Reader]:
    path = write_run_config(folder)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_config(path)

    return path.read_bytes(), read


def read_corpus(folder: Path) -> None:
    corpus = open_corpus(str(folder))
    for shard in range(len(corpus.manifest.shards)):
        for sample in range(len(corpus.lengths(shard))):
            corpus.read(shard, sample)


def corpus_reader(folder: Path, name: str) -> tuple[bytes, Reader]:
    """The reader of one file of a corpus; the manifest lists whatever is put there, size and hash."""
    write_corpus(folder, [3, 2], ("source", "target"), max_tokens=9)
    path, manifest = folder / name, folder / "manifest.json"
    original, listed = path.read_bytes(), manifest.read_text()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if path != manifest:
            text = listed.replace(sha256(original), sha256(content))
            if name.endswith(".tar"):
                text = text.replace(f'"bytes": {len(original)}', f'"bytes": {len(content)}', 1)
            manifest.write_text(text)
        rest = read_manifest(folder)
        check_shard(
            ShardCheck(
                folder, rest.shards[0], 0, rest.model_copy(update={"shards": (), "sources": ()})
            )
        )
        read_corpus(folder)

    return original, read


def export_reader(folder: Path, name: str) -> tuple[bytes, Reader]:
    """The reader of one file of an export; its config has the hash of whatever is put there."""
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(tokenizer_bytes(300))
    shape = {**SHAPE, "vocab_size": load_tokenizer(tokenizer).vocab_size}
    save_export(
        folder / "model",
        tiny_model(**shape).state_dict(),
        ModelConfig.model_validate(shape),
        tokenizer,
    )
    path, config = folder / "model" / name, folder / "model" / CONFIG
    original, listed = path.read_bytes(), config.read_text()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if path != config:
            config.write_text(listed.replace(sha256(original), sha256(content)))
        load_export(folder / "model").model()

    return original, read


def tokenizer_reader(content: bytes) -> tuple[bytes, Reader]:
    """The reader of a tokenizer's file; what it has taken must work."""

    def read(changed: bytes) -> None:
        tokenizer = read_tokenizer(changed)
        ids = tokenizer.encode("the slot <mask> \u65e5 </s>")
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        tokenizer.decode(ids)
        for token in ids:
            tokenizer.piece(token)
            tokenizer.continues_character(token)

    return content, read


READERS: dict[str, Callable[[Path], tuple[bytes, Reader]]] = {
    "config": config_reader,
    "manifest": lambda folder: corpus_reader(folder, "manifest.json"),
    "index": lambda folder: corpus_reader(folder, "shard-000000.idx.npy"),
    "tar": lambda folder: corpus_reader(folder, "shard-000000.tar"),
    "safetensors": lambda folder: export_reader(folder, WEIGHTS),
    "export config": lambda folder: export_reader(folder, CONFIG),
    "tokenizer.json": lambda _: tokenizer_reader(bart_json(300)),
}

STRANGE = [
    None,
    True,
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    0.5,
    1e308,
    "",
    "x",
    "../x",
    "\0",
    "a" * 3000,
]
STRANGE += ["1", [], [[]], {}, {"a": {}}, [0] * 100, "\ud800", "\u202e"]


@st.composite
def changed_bytes(draw: Any, original: bytes) -> bytes:
    """A file with up to four changes of a stretch of it; half of them lie in the first kilobyte."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from([len(content), min(len(content), 1024)]))
        start = draw(st.integers(0, end))
        length = draw(st.sampled_from([0, 1, 1, 2, 8, 100, 1000, len(content)]))
        stretch = bytes(content[start : start + length])
        kind = draw(st.sampled_from(["new", "new", "bit", "remove", "double", "zeros", "largest"]))
        new = {
            "new": lambda: draw(st.binary(max_size=20)),
            "bit": lambda s=stretch: (
                bytes([s[0] ^ (1 << draw(st.integers(0, 7)))]) + s[1:] if s else b"\x01"
            ),
            "remove": lambda: b"",
            "double": lambda s=stretch: s + s,
            "zeros": lambda s=stretch: bytes(len(s)),
            "largest": lambda s=stretch: b"\xff" * len(s),
        }[kind]()
        content[start : start + length] = new
    return bytes(content[: 2**20])


@st.composite
def changed_json(draw: Any, original: Any) -> str:
    """JSON with up to four values removed, replaced, repeated, or given under another key."""
    document = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 4))):
        where, key = document, None
        while isinstance(where, dict | list) and where:
            keys = list(where) if isinstance(where, dict) else list(range(len(where)))
            key = draw(st.sampled_from(keys))
            if (
                not isinstance(where[key], dict | list)
                or not where[key]
                or draw(st.integers(0, 3)) == 0
            ):
                break
            where = where[key]
        if key is None or not where:
            break
        kind = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "number"]))
        if kind == "remove":
            del where[key]
        elif kind == "repeat":
            value = where[key]
            where.append(value) if isinstance(where, list) else where.update(
                {str(draw(st.text(max_size=5))): value}
            )
        else:
            where[key] = (
                draw(st.integers())
                if kind == "number"
                else deepcopy(draw(st.sampled_from(STRANGE)))
            )
    return json.dumps(document)


def inputs(name: str, original: bytes) -> st.SearchStrategy[bytes]:
    """Inputs of a reader: changed bytes, and for JSON (a safetensors file begins with some) changed values."""
    if name in ("index", "tar"):
        return changed_bytes(original)
    if name == "safetensors":
        size = int.from_bytes(original[:8], "little")
        header, data = json.loads(original[8 : 8 + size]), original[8 + size :]
        rebuilt = changed_json(header).map(
            lambda text: len(text).to_bytes(8, "little") + text.encode() + data
        )
        return changed_bytes(original) | rebuilt
    return changed_bytes(original) | changed_json(json.loads(original)).map(str.encode)


def fuzz(name: str, count: int, start: int) -> tuple[int, int, float]:
    """Give a reader `count` inputs: how many there were, how many it refused, and the seconds of the slowest."""
    done = [0, 0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        original, read = READERS[name](Path(folder))
        read(original)

        @seed(start)
        @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(inputs(name, original))
        def attempt(content: bytes) -> None:
            began = time.monotonic()
            signal.alarm(SECONDS)
            try:
                read(content)
            except UserError:
                done[1] += 1
            finally:
                signal.alarm(0)
            done[0] += 1
            done[2] = max(done[2], time.monotonic() - began)

        attempt()
    return int(done[0]), int(done[1]), done[2]


def too_slow(*_: Any) -> None:
    raise TimeoutError(f"an input took more than {SECONDS} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=list(READERS))
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, too_slow)
    names = [given.reader] if given.reader else list(READERS)
    for name in names:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
        count, refused, slowest = fuzz(name, -(-given.inputs // len(names)), given.seed)
        print(
            f"{name}: {count} inputs, {refused} refused, the slowest took {slowest:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
