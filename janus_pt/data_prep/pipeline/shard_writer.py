"""The last step of the work: documents or pairs become shards, and each task's shards a partial manifest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from pydantic import BaseModel, ConfigDict, ValidationError

from janus_pt.data.manifest import Shard
from janus_pt.data_prep.blocks import cut_pieces
from janus_pt.data_prep.encode import Encoder
from janus_pt.data_prep.files import BadLine
from janus_pt.data_prep.inputs import Pair
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.writer import ShardFile
from janus_pt.packing.example import IntArray
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.files import make_folder, sync, write_atomically
from janus_pt.utils.processes import writer_name

FOLDER = "manifests"
"""Folder of the partial manifests, in the work folder."""
ATTEMPT = ".attempt-"
"""Beginning of the name of the folder in which an attempt at a task writes."""
TOKENIZER_NAME = "tokenizer.model"
"""Of the tokenizer that the build trains, in the work folder."""
KEYS_PER_TASK = 10**9
"""The numbers in a task's keys begin at its rank times this."""
PAIRS_AT_ONCE = 512
"""Pairs that are tokenised together."""


class PartialShard(BaseModel):
    """A shard, and which of the build's files its samples are from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard
    files: tuple[str, ...]


class PartialManifest(BaseModel):
    """What one task wrote; its file is there when all its shards are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizers: tuple[str, ...]
    """sha256 of the tokenizers."""
    shards: tuple[PartialShard, ...]
    skipped: tuple[BadLine, ...]
    """Pairs that are too long or empty."""


def partial_path(work: Path, rank: int) -> Path:
    """The partial manifest of a task."""
    return work / FOLDER / f"{rank:05d}.json"


def is_written(work: Path, output: Path, rank: int) -> bool:
    """Whether a task's shards are all there, by their sizes."""
    try:
        text = partial_path(work, rank).read_text()
        partial = PartialManifest.model_validate_json(text)
    except (OSError, ValidationError):
        return False
    for entry in partial.shards:
        path = output / entry.shard.file
        index = output / entry.shard.index_file
        if not (path.is_file() and index.is_file() and path.stat().st_size == entry.shard.bytes):
            return False
    return True


def tokenizer_paths(config: CorpusBuildConfig) -> list[str]:
    """The tokenizer, then the tokenizer of the sources, if they have their own."""
    trained = str(Path(config.work_folder) / TOKENIZER_NAME)
    paths = [config.tokenizer.path or trained]
    return [*paths, config.source_tokenizer] if config.source_tokenizer else paths


class _Sample(NamedTuple):
    fields: tuple[IntArray, ...]
    file: str


class ShardWriter(PipelineStep):
    """Ends a stage: cuts documents into blocks of whole sentences, tokenises and writes shards.

    A task writes in a folder of its own, moves its shards into the corpus when all are whole, and writes its partial
    manifest last. So a task that is killed, or done twice, even at the same time, leaves the same files.
    """

    type = "💽 - WRITER"
    name = "shards"

    def __init__(self, config: CorpusBuildConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Write the task's shards, unless they are there already."""
        work, output = Path(self.config.work_folder), Path(self.config.output)
        if is_written(work, output, rank):
            return
        attempt = output / f"{ATTEMPT}{rank:05d}{writer_name()}"
        make_folder(attempt)
        try:
            partial = self._write(data, rank, attempt)
            for entry in partial.shards:
                # The index first: a tar with its final name always has one.
                for name in (entry.shard.index_file, entry.shard.file):
                    os.replace(attempt / name, output / name)
            sync(output)
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
        path = partial_path(work, rank)
        make_folder(path.parent)
        write_atomically(path, partial.model_dump_json(exclude_none=True))

    def _write(self, data: Iterable[Document], rank: int, folder: Path) -> PartialManifest:
        """Write all shards of the task into `folder`."""
        paths = tokenizer_paths(self.config)
        tokenizers = [load_tokenizer(path) for path in paths]
        of_sources = tokenizers[1] if len(tokenizers) > 1 else None
        encoder = Encoder(tokenizers[0], self.config.shards.max_tokens, of_sources)
        skipped: list[BadLine] = []
        of_pairs = self.config.kind == "pairs"
        samples = self._pairs(encoder, data, skipped) if of_pairs else self._blocks(encoder, data)
        hashes = tuple(tokenizer.fingerprint for tokenizer in tokenizers)
        shards = tuple(self._shards(samples, rank, folder))
        return PartialManifest(tokenizers=hashes, shards=shards, skipped=tuple(skipped))

    def _blocks(self, encoder: Encoder, data: Iterable[Document]) -> Iterator[_Sample]:
        for document in data:
            for piece in cut_pieces(document.text):
                for block in encoder.blocks(piece):
                    yield _Sample((block,), document.metadata["file"])

    def _pairs(
        self, encoder: Encoder, data: Iterable[Document], skipped: list[BadLine]
    ) -> Iterator[_Sample]:
        documents = iter(data)
        while batch := list(islice(documents, PAIRS_AT_ONCE)):
            pairs = []
            for document in batch:
                file, _, line = document.id.rpartition(":")
                pairs.append(Pair(file, int(line), document.text, document.metadata["target"]))
            encoded = encoder.encode_pairs(pairs)
            skipped += encoded.bad
            dropped = {(line.file, line.line) for line in encoded.bad}
            kept = [pair for pair in pairs if (pair.file, pair.line) not in dropped]
            for pair, sample in zip(kept, encoded.samples(), strict=True):
                yield _Sample(sample, pair.file)

    def _shards(
        self, samples: Iterator[_Sample], rank: int, folder: Path
    ) -> Iterator[PartialShard]:
        """Write the samples, a full shard after another; yield each shard's entry."""
        fields = ("source", "target") if self.config.kind == "pairs" else ("text",)
        size = self.config.shards.samples_per_shard
        first = rank * KEYS_PER_TASK
        # The inner loop takes from the same iterator: `number` counts shards.
        for number, sample in enumerate(samples):
            # Opened for a sample only, so that no shard is empty.
            file = ShardFile(folder, number, fields, prefix=f"shard-{rank:05d}")
            files: set[str] = set()
            for member in chain([sample], islice(samples, size - 1)):
                file.write(first + file.samples, member.fields)
                files.add(member.file)
            entry = file.close().model_copy(update={"first": first})
            self.stat_update("samples", value=entry.samples)
            yield PartialShard(shard=entry, files=tuple(sorted(files)))
            first += entry.samples
