"""The stages of a build: pipelines of datatrove, each with its number of tasks, one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.text import TextNormConfig

from janus_pt.data_prep.pipeline.cleaning import cleaning_steps
from janus_pt.data_prep.pipeline.join import JoinManifests
from janus_pt.data_prep.pipeline.reader import SourceReader
from janus_pt.data_prep.pipeline.removed import Removed
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig, MinhashSection
from janus_pt.data_prep.pipeline.shard_writer import ShardWriter
from janus_pt.data_prep.pipeline.stored import DocumentsReader, DocumentsWriter
from janus_pt.data_prep.pipeline.tokenizer import SampleWriter, TokenizerTrainer
from janus_pt.data_prep.pipeline.words import UnicodeWords

SHARDS = "shards"
"""The stage whose tasks write shards."""

MAX_FINDERS = 64
"""Each task writes a file for each finder: as many finders as tasks would make 4 million files of 2,000 tasks."""

Steps = Callable[[], list[PipelineStep]]
"""Makes the steps anew: each stage counts for itself."""


@dataclass(frozen=True)
class Stage:
    """One pipeline, which as many tasks run on their parts of the data; the next stage waits for all."""

    name: str
    tasks: int
    steps: Steps
    about: str
    """What it does, for `--dry-run`."""


def pair_content(document: Document) -> str:
    """What two equal pairs have in common."""
    return f"{document.text}\n{document.metadata['target']}"


def source_content(document: Document) -> str:
    """What two pairs with equal sources have in common, and two equal documents."""
    return document.text


def target_content(document: Document) -> str:
    """What two pairs with equal targets have in common."""
    target: str = document.metadata["target"]
    return target


CONTENTS = {
    "text": source_content,
    "pair": pair_content,
    "source": source_content,
    "target": target_content,
}


def make_stages(config: CorpusBuildConfig) -> list[Stage]:
    """The stages of a build, in order.

    Documents are cleaned and stored once. Each stage after that reads them, drops what the stages before it found,
    and counts the rest: a duplicate is known by its task and its number in it, so all these stages have the same number
    of tasks.
    """
    tasks = config.tasks
    trains = config.tokenizer.path is None
    deduplication = config.deduplication
    join = Stage("join", 1, lambda: [JoinManifests(config)], "one manifest, report.html")

    def cleaned() -> list[PipelineStep]:
        """From the files to clean documents."""
        return [SourceReader(config), *cleaning_steps(config)]

    if not (trains or deduplication.exact or deduplication.minhash):
        writer = Stage(
            SHARDS, tasks, lambda: [*cleaned(), ShardWriter(config)], "read, clean, write shards"
        )
        return [writer, join]

    work = config.work_folder
    stages = [
        Stage("clean", tasks, lambda: [*cleaned(), DocumentsWriter(work)], "read, clean, store")
    ]
    removal: list[Steps] = [lambda: [DocumentsReader(work)]]
    for key in deduplication.exact:
        stages += _exact_stages(config, key, list(removal))
        removal.append(_exact_filter(config, key))
    if deduplication.minhash:
        stages += _minhash_stages(config, deduplication.minhash, list(removal))
        removal.append(lambda: [_minhash_filter(config)])
    if trains:
        sample = [*removal, lambda: [SampleWriter(config)]]
        stages.append(
            Stage("tokenizer_sample", tasks, _chained(sample), "an even sample of sentences")
        )
        stages.append(Stage("tokenizer", 1, lambda: [TokenizerTrainer(config)], "train it"))
    writing = [*removal, lambda: [ShardWriter(config)]]
    stages.append(Stage(SHARDS, tasks, _chained(writing), "drop duplicates, write shards"))
    return [*stages, join]


def _chained(parts: list[Steps]) -> Steps:
    """The steps of all parts, one after another."""

    def steps() -> list[PipelineStep]:
        return [step for part in parts for step in part()]

    return steps


def _folder(config: CorpusBuildConfig, name: str) -> str:
    return str(Path(config.work_folder) / name)


def _exact_config(key: str) -> ExactDedupConfig:
    return ExactDedupConfig(content_getter=CONTENTS[key])


def _exact_stages(config: CorpusBuildConfig, key: str, before: list[Steps]) -> list[Stage]:
    """Hashes of each task's documents, sorted; then each finder merges a range of hashes of all tasks."""
    signatures = _folder(config, f"exact_{key}_signatures")
    found = _folder(config, f"exact_{key}_found")
    finders = min(config.tasks, MAX_FINDERS)

    def sign() -> list[PipelineStep]:
        return [ExactDedupSignature(signatures, _exact_config(key), finder_workers=finders)]

    def find() -> list[PipelineStep]:
        return [ExactFindDedups(signatures, found, _exact_config(key))]

    return [
        Stage(f"exact_{key}_sign", config.tasks, _chained([*before, sign]), f"hash each {key}"),
        Stage(f"exact_{key}_find", finders, find, "find equal hashes"),
    ]


def _exact_filter(config: CorpusBuildConfig, key: str) -> Steps:
    found = _folder(config, f"exact_{key}_found")
    name = f"exact_{key}"

    def steps() -> list[PipelineStep]:
        removed = Removed(config.work_folder, name, config.removed_samples)
        return [ExactDedupFilter(found, _exact_config(key), removed)]

    return steps


def minhash_config(config: MinhashSection) -> MinhashConfig:
    """The settings as datatrove has them."""
    return MinhashConfig(
        n_grams=config.n_grams,
        num_buckets=config.buckets,
        hashes_per_bucket=config.hashes_per_bucket,
        seed=config.seed,
        norm_config=TextNormConfig(norm_numbers=config.numbers_as_zero),
    )


class _Buckets(MinhashDedupBuckets):
    """datatrove's, which several tasks share a bucket's hashes by the file of the first task of the cleaning.

    It fails if that has fewer documents than there are such tasks, as where a filter removed them.
    """

    def get_worker_hash_range(
        self, sig_files: list[str], rank: int, world_size: int
    ) -> tuple[int, int]:
        """The hashes of this task, by the largest file. If that is small, the bucket's first task takes them all."""
        workers = world_size // self.config.num_buckets
        sizes = {name: self.input_folder.size(name) for name in sorted(sig_files)}
        largest = max(sizes, key=sizes.__getitem__, default="")
        line = self.config.hashes_per_bucket * 8 + 4
        if not largest or sizes[largest] < workers * line:
            first, end = super().get_worker_hash_range([], rank, world_size)
            return (first if rank % workers == 0 else end), end
        ends: tuple[int, int] = super().get_worker_hash_range([largest], rank, world_size)
        return ends


def _minhash_stages(
    config: CorpusBuildConfig, section: MinhashSection, before: list[Steps]
) -> list[Stage]:
    signatures = _folder(config, "minhash_signatures")
    buckets = _folder(config, "minhash_buckets")
    remove = _folder(config, "minhash_remove")
    settings = minhash_config(section)

    def sign() -> list[PipelineStep]:
        return [MinhashDedupSignature(signatures, settings, language=UnicodeWords())]

    def match() -> list[PipelineStep]:
        return [_Buckets(signatures, buckets, config=settings)]

    def cluster() -> list[PipelineStep]:
        return [MinhashDedupCluster(buckets, remove, config=settings)]

    # Each bucket's signatures are shared by as many tasks as make about the number of the other stages.
    matchers = section.buckets * max(1, config.tasks // section.buckets)
    return [
        Stage("minhash_sign", config.tasks, _chained([*before, sign]), "MinHash signatures"),
        Stage("minhash_buckets", matchers, match, "find equal signatures"),
        Stage("minhash_cluster", 1, cluster, "groups of near duplicates"),
    ]


def _minhash_filter(config: CorpusBuildConfig) -> PipelineStep:
    removed = Removed(config.work_folder, "minhash", config.removed_samples)
    filter_step: PipelineStep = MinhashDedupFilter(_folder(config, "minhash_remove"), removed)
    return filter_step
