"""A small corpus of random tokens, written straight with webdataset's writer."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import webdataset

from janus_pt.data.manifest import Manifest, Shard, TokenizerEntry

NPY_HEADER = 128
"""Bytes before the data of a one-dimensional `.npy` file."""


def write_corpus(
    folder: Path,
    shard_sizes: Sequence[int],
    fields: tuple[str, ...] = ("text",),
    *,
    max_tokens: int = 30,
    vocab_size: int = 1000,
    seed: int = 0,
    tokenizer: bytes = b"no model",
) -> Path:
    """Write a corpus with `shard_sizes[i]` samples in shard i, 1 to `max_tokens` tokens in each field."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    rng = np.random.default_rng(seed)
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    shards, key = [], 0
    for number, size in enumerate(shard_sizes):
        samples = [
            {
                name: rng.integers(5, vocab_size, rng.integers(1, max_tokens + 1)).astype(dtype)
                for name in fields
            }
            for _ in range(size)
        ]
        shards.append(write_shard(folder / f"shard-{number:06d}.tar", samples, fields, key))
        key += size
    Manifest(
        fields=fields,
        dtype=dtype,
        samples=key,
        tokens={name: sum(shard.tokens[name] for shard in shards) for name in fields},
        max_tokens=max_tokens,
        tokenizer=TokenizerEntry(
            file="tokenizer.model",
            sha256=_sha256(folder / "tokenizer.model"),
            vocab_size=vocab_size,
        ),
        sources=(),
        skipped=0,
        shards=tuple(shards),
    ).write(folder)
    return folder


def write_shard(
    path: Path, samples: list[dict[str, np.ndarray]], fields: tuple[str, ...], first_key: int
) -> Shard:
    with webdataset.TarWriter(str(path)) as writer:
        for key, sample in enumerate(samples, first_key):
            writer.write(
                {
                    "__key__": f"{key:09d}",
                    **{f"{name}.npy": tokens for name, tokens in sample.items()},
                }
            )
    with tarfile.open(path) as tar:
        offsets = {member.name: member.offset_data + NPY_HEADER for member in tar}
    rows = [
        [
            value
            for name in fields
            for value in (
                offsets[f"{key:09d}.{name}.npy"],
                len(sample[name]),
                zlib.crc32(sample[name].tobytes()),
            )
        ]
        for key, sample in enumerate(samples, first_key)
    ]
    index = path.with_suffix(".idx.npy")
    np.save(index, np.array(rows, dtype=np.int64).reshape(len(samples), 3 * len(fields)))
    return Shard(
        file=path.name,
        samples=len(samples),
        tokens={name: sum(len(sample[name]) for sample in samples) for name in fields},
        bytes=path.stat().st_size,
        sha256=_sha256(path),
        index_sha256=_sha256(index),
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
