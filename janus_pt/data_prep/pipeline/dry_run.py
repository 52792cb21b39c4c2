"""`--dry-run`: the stages, and about what they will take, from a sample of the sources."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from tabulate import tabulate

from janus_pt.data_prep.blocks import cut_pieces
from janus_pt.data_prep.encode import Encoder
from janus_pt.data_prep.inputs import Pair
from janus_pt.data_prep.pipeline.cleaning import cleaning_steps
from janus_pt.data_prep.pipeline.reader import SourceReader
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.shard_writer import tokenizer_paths
from janus_pt.data_prep.pipeline.sources import SourceFile, find_files, write_files
from janus_pt.data_prep.pipeline.stages import SHARDS, make_stages, minhash_config
from janus_pt.data_prep.pipeline.words import UnicodeWords
from janus_pt.tokenizer import load_tokenizer

SAMPLE_BYTES = 2**21
"""Text that is cleaned and tokenised, of each source."""
COUNT_SECONDS = 20.0
"""The rest of a source's smallest file is only counted, for so long."""
COMPRESSION = {".gz": 2.8, ".xz": 3.5, ".zst": 2.8, ".parquet": 2.0}
"""Bytes of text for a stored byte, where the file was too large to be counted: of English prose, roughly."""
STORED_SHARE = 0.4
"""Bytes that a byte of cleaned text takes between the stages, by zstandard: of English prose, roughly."""
SHARD_BYTES = 2 * 512 + 24
"""Of a sample in a shard beside its tokens: header, half of the padding, entry of the index."""


@dataclass
class Sample:
    """What the sources' samples say about the whole."""

    documents: float = 0.0
    text_bytes: float = 0.0
    kept_documents: float = 0.0
    kept_bytes: float = 0.0
    clean_seconds: float = 0.0
    """Of one core, for everything; so are the others."""
    sign_seconds: float = 0.0
    encode_seconds: float = 0.0
    shard_bytes: float = 0.0


def dry_run(config: CorpusBuildConfig, workers: int) -> str:
    """The report. `UserError` as for the build itself."""
    files = find_files(config)
    total = Sample()
    for index in range(len(config.sources)):
        _add(total, config, [file for file in files if file.source == index])
    stored = sum(file.size for file in files)
    rows = _rows(config, total, workers)
    kept = total.kept_bytes / max(total.text_bytes, 1.0)
    lines = [
        f"{len(files):,} files, {_size(stored)} stored; about {total.documents:,.0f} {config.kind} with "
        f"{_size(total.text_bytes)} of text, of which filters keep {kept:.0%} before deduplication",
        tabulate(
            rows,
            headers=["stage", "tasks", "what", "writes", "core hours", f"hours, {workers} workers"],
        ),
        "Estimated from the first documents of each source's smallest file; duplicates are not estimated.",
    ]
    return "\n".join(lines)


def _add(total: Sample, config: CorpusBuildConfig, files: Sequence[SourceFile]) -> None:
    """Measure a source's smallest file and add what all of its files would take."""
    smallest = min(files, key=lambda file: file.size)
    with tempfile.TemporaryDirectory() as folder:
        # The sample's lists of removed texts go where nobody looks.
        local = config.model_copy(update={"work": folder, "tasks": 1, "on_error": "skip"})
        write_files([smallest], Path(folder))
        begin = time.perf_counter()
        documents = SourceReader(local).run()
        sample = list(_take(documents, SAMPLE_BYTES))
        read_seconds = time.perf_counter() - begin
        sampled = sum(map(_bytes, sample)) or 1
        counted, finished = _count(documents)
        begin = time.perf_counter()
        kept = list(_cleaned(local, sample))
        clean_seconds = read_seconds + time.perf_counter() - begin
    size = max(smallest.size, 1)
    in_file = float(sampled + counted)
    if not finished:
        in_file = size * COMPRESSION.get(Path(smallest.url).suffix, 1.0)
    # From the sample to all files of the source.
    factor = in_file / sampled * sum(file.size for file in files) / size
    total.documents += factor * len(sample)
    total.text_bytes += factor * sampled
    total.kept_documents += factor * len(kept)
    total.kept_bytes += factor * sum(map(_bytes, kept))
    total.clean_seconds += factor * clean_seconds
    total.sign_seconds += factor * _sign_seconds(config, kept)
    seconds, shard_bytes = _encoded(config, kept)
    total.encode_seconds += factor * seconds
    total.shard_bytes += factor * shard_bytes


def _take(documents: Iterable[Document], limit: int) -> Iterator[Document]:
    size = 0
    for document in documents:
        yield document
        size += _bytes(document)
        if size >= limit:
            return


def _bytes(document: Document) -> int:
    return len(document.text.encode()) + len(document.metadata.get("target", "").encode())


def _count(documents: Iterable[Document]) -> tuple[int, bool]:
    """(bytes of the rest of a file, whether it was read to its end)."""
    end = time.perf_counter() + COUNT_SECONDS
    size = 0
    for document in documents:
        size += _bytes(document)
        if time.perf_counter() > end:
            return size, False
    return size, True


def _cleaned(config: CorpusBuildConfig, documents: Iterable[Document]) -> Iterator[Document]:
    for step in cleaning_steps(config):
        documents = step.run(documents, 0, 1)
    yield from documents


def _sign_seconds(config: CorpusBuildConfig, documents: Sequence[Document]) -> float:
    """For the MinHash signatures of documents."""
    section = config.deduplication.minhash
    if section is None:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        step = MinhashDedupSignature(folder, minhash_config(section), language=UnicodeWords())
        begin = time.perf_counter()
        step.run(iter(documents), 0, 1)
        return time.perf_counter() - begin


def _encoded(config: CorpusBuildConfig, documents: Sequence[Document]) -> tuple[float, float]:
    """(seconds to tokenise documents, bytes of their shards); nothing without a tokenizer."""
    if config.tokenizer.path is None:
        return 0.0, 0.0
    tokenizers = [load_tokenizer(path) for path in tokenizer_paths(config)]
    of_sources = tokenizers[1] if len(tokenizers) > 1 else None
    encoder = Encoder(tokenizers[0], config.shards.max_tokens, of_sources)
    begin = time.perf_counter()
    if config.kind == "pairs":
        pairs = [Pair("", 0, item.text, item.metadata["target"]) for item in documents]
        encoded = encoder.encode_pairs(pairs)
    else:
        texts = [piece for item in documents for piece in cut_pieces(item.text)]
        encoded = encoder.encode_texts(texts)
    seconds = time.perf_counter() - begin
    ids = sum(array.nbytes for array in encoded.ids)
    samples = sum(len(lengths) for lengths in encoded.lengths)
    return seconds, float(ids + samples * SHARD_BYTES)


def _rows(config: CorpusBuildConfig, total: Sample, workers: int) -> Iterator[list[str]]:
    """Stage by stage: what it writes, and its time where the sample tells it."""
    section = config.deduplication.minhash
    signature = 0
    if section is not None:
        # Each bucket has the hashes and the document's number.
        signature = section.buckets * (8 * section.hashes_per_bucket + 4)
    stored = STORED_SHARE * total.kept_bytes
    for stage in make_stages(config):
        writes, seconds = 0.0, 0.0
        if stage.name == "clean":
            writes, seconds = stored, total.clean_seconds
        elif stage.name == SHARDS:
            writes, seconds = total.shard_bytes, total.encode_seconds
            if not config.deduplication.exact and section is None and config.tokenizer.path:
                seconds += total.clean_seconds
        elif stage.name == "minhash_sign":
            writes, seconds = signature * total.kept_documents, total.sign_seconds
        elif stage.name.endswith("_sign"):
            # A hash of 8 bytes, priority and number.
            writes = 14 * total.kept_documents
        used = min(workers, stage.tasks)
        hours = seconds / 3600
        yield [
            stage.name,
            f"{stage.tasks:,}",
            stage.about,
            _size(writes) if writes else "little",
            f"{hours:.3g}" if seconds else "?",
            f"{hours / used:.3g}" if seconds else "?",
        ]


def _size(count: float) -> str:
    """Bytes in the unit that suits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
