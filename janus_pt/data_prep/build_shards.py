"""Build a corpus (WebDataset shards of token ids, index, manifest) from text.

Documents, from .txt (a blank line ends a document) or .jsonl (one a line), cut into blocks of whole sentences:

    janus-pt prep build-shards --input books.jsonl.xz --field text --tokenizer tokenizer.model --output corpus

Sentence pairs, line by line from two files; pairs with an empty or over-long side are dropped and listed:

    janus-pt prep build-shards --source train.de --target train.en --tokenizer tokenizer.model --output pairs

Any file may be .gz, .xz or .zst. The same command continues a build that was killed; the bytes written are the same
for any number of workers and interruptions.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from janus_pt.data.manifest import (
    FieldName,
    InputFile,
    Manifest,
    Shard,
    TokenizerEntry,
    read_manifest,
)
from janus_pt.data_prep.encode import Encoded, encode_item, start_worker
from janus_pt.data_prep.files import fingerprint, format_suffix
from janus_pt.data_prep.inputs import Item, OnError, read_items
from janus_pt.data_prep.journal import SKIPPED_NAME, Journal
from janus_pt.data_prep.writer import ShardFile
from janus_pt.tokenizer import SOURCE_PREFIX, Tokenizer, load_tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import sync
from janus_pt.utils.processes import available_cores, map_in_order, worker_pool

MIN_TOKENS = 16
"""Shorter blocks would cut most sentences."""
ITEMS_AHEAD = 3
"""Work items read in advance for each worker process."""


@dataclass(frozen=True)
class CorpusRequest:
    """The inputs and settings of a corpus; the same request gives the same bytes."""

    inputs: tuple[tuple[str, ...], ...]
    """(file,) for each file of documents, or (source file, target file) for each pair of files."""
    tokenizer: Tokenizer
    field: str = "text"
    """Field of the text in `.jsonl` documents."""
    max_tokens: int = 510
    """Most tokens of a block, or of a side of a pair, without bos and eos."""
    samples_per_shard: int = 8192
    source_tokenizer: Tokenizer | None = None
    """Tokenizer of the sources of pairs, if they have their own."""

    @property
    def tokenizers(self) -> dict[str, tuple[str, Tokenizer]]:
        """File and tokenizer by the key in the manifest."""
        tokenizers = {"tokenizer": (self.tokenizer.file_name, self.tokenizer)}
        if self.source_tokenizer:
            name = SOURCE_PREFIX + self.source_tokenizer.file_name
            tokenizers["source_tokenizer"] = (name, self.source_tokenizer)
        return tokenizers

    @property
    def fields(self) -> tuple[FieldName, ...]:
        """Names of a sample's token arrays."""
        return ("source", "target") if len(self.inputs[0]) == 2 else ("text",)

    def input_files(self) -> tuple[InputFile, ...]:
        """The input files with their fingerprints: reads each once."""
        files = []
        for paths in self.inputs:
            for path in paths:
                sha256 = fingerprint(path)
                files.append(InputFile(path=path, sha256=sha256, bytes=os.path.getsize(path)))
        return tuple(files)


def build(
    request: CorpusRequest,
    folder: Path,
    workers: int | None = None,
    on_error: OnError = "stop",
    overwrite: bool = False,
) -> Manifest:
    """Build the corpus, or the rest of an unfinished one, and return its manifest. A finished one is only read.

    Raises:
        UserError: an input cannot be read or has no text, a line is bad and `on_error` is `stop`, or the folder
            holds something else.
    """
    input_files = request.input_files()
    journal = Journal(folder, _identity(request, input_files), overwrite)
    try:
        if journal.finished:
            print(f"{folder}: finished already with these arguments, nothing to do")
            return read_manifest(folder)
        for name, tokenizer in request.tokenizers.values():
            tokenizer.save(folder / name)
            sync(folder / name)
        _build_shards(request, input_files, folder, journal, workers or available_cores(), on_error)
        if not journal.shards:
            paths = ", ".join(file.path for file in input_files)
            raise UserError(f"no text in {paths}: nothing to build")
        manifest = make_manifest(request, input_files, journal.shards, journal.position.skipped)
        journal.finish(manifest)
        return manifest
    finally:
        journal.close()


def _build_shards(
    request: CorpusRequest,
    input_files: tuple[InputFile, ...],
    folder: Path,
    journal: Journal,
    workers: int,
    on_error: OnError,
) -> None:
    """Read, encode in worker processes, and write, from the journal's position on."""
    source_tokenizer = request.source_tokenizer.content if request.source_tokenizer else None
    encoder_arguments = (request.tokenizer.content, request.max_tokens, source_tokenizer)
    with worker_pool(workers, start_worker, *encoder_arguments) as pool:
        items = read_items(request.inputs, request.field, on_error)
        # Reading what was encoded already costs little beside encoding it.
        remaining = islice(items, journal.position.items, None)
        encoded = map_in_order(pool, encode_item, remaining, ahead=ITEMS_AHEAD * workers)
        _write_shards(_show_progress(encoded, input_files), request, folder, journal)


def _write_shards(
    encoded: Iterator[tuple[Item, Encoded]], request: CorpusRequest, folder: Path, journal: Journal
) -> None:
    """Write the samples behind the journal's position; `encoded` begins with the first item not wholly written."""
    begin = journal.position
    number = sum(shard.samples for shard in journal.shards)
    shard: ShardFile | None = None
    for index, (item, result) in enumerate(encoded, start=begin.items):
        taken = begin.taken if index == begin.items else 0
        # The bad lines of an item are listed with its first sample: a partly written item has listed them.
        if not taken:
            journal.skip([*item.bad, *result.bad])
        for sample in islice(result.samples(), taken, None):
            # Opened for a sample only, so that no shard is empty.
            if shard is None:
                shard = ShardFile(folder, len(journal.shards), request.fields)
            shard.write(number, sample)
            number += 1
            taken += 1
            if shard.samples == request.samples_per_shard:
                journal.add(shard.close(), index, taken)
                shard = None
    if shard is not None:
        journal.add(shard.close(), index + 1, 0)


def _show_progress(
    encoded: Iterator[tuple[Item, Encoded]], input_files: tuple[InputFile, ...]
) -> Iterator[tuple[Item, Encoded]]:
    """Show the share of the input done, the time left and the text encoded a second."""
    layout = "{percentage:3.0f}%|{bar:30}| {elapsed}<{remaining}{postfix}"
    # In a log file, a line every ten seconds is enough.
    interval = 0.5 if sys.stderr.isatty() else 10.0
    input_bytes = sum(file.bytes for file in input_files)
    start = time.monotonic()
    text_bytes = 0
    with tqdm(total=input_bytes, bar_format=layout, mininterval=interval) as bar:
        for item, result in encoded:
            yield item, result
            text_bytes += result.text_bytes
            megabytes = text_bytes / 1e6
            rate = megabytes / (time.monotonic() - start)
            bar.set_postfix_str(f"{megabytes:.1f} MB of text, {rate:.2f} MB/s", refresh=False)
            bar.update(item.position - bar.n)


def _identity(request: CorpusRequest, input_files: tuple[InputFile, ...]) -> dict[str, Any]:
    """Everything that decides the shards: two requests with the same identity give the same ones."""
    identity: dict[str, Any] = {
        "fields": list(request.fields),
        "field": request.field,
        # Contents, not paths: a build continues after its inputs were moved.
        "inputs": [file.sha256 for file in input_files],
        "max_tokens": request.max_tokens,
        "samples_per_shard": request.samples_per_shard,
    }
    for key, (_, tokenizer) in request.tokenizers.items():
        identity[key] = tokenizer.fingerprint
    return identity


def make_manifest(
    request: CorpusRequest,
    input_files: tuple[InputFile, ...],
    shards: Sequence[Shard],
    skipped: int,
    **more: Any,
) -> Manifest:
    """The manifest of a corpus of these shards.

    Args:
        skipped: input lines that were skipped.
        more: other keys of the manifest.
    """
    entries = {}
    for key, (name, tokenizer) in request.tokenizers.items():
        entries[key] = TokenizerEntry(
            file=name, sha256=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size
        )
    largest = max(entry.vocab_size for entry in entries.values())
    tokens = {name: sum(shard.tokens[name] for shard in shards) for name in request.fields}
    return Manifest(
        fields=request.fields,
        dtype="uint16" if largest <= 2**16 else "uint32",
        samples=sum(shard.samples for shard in shards),
        tokens=tokens,
        max_tokens=request.max_tokens,
        sources=input_files,
        skipped=skipped,
        shards=tuple(shards),
        **entries,
        **more,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep build-shards`."""
    _add_files(parser.add_argument)
    _add_settings(parser.add_argument)


def _add_files(add: Callable[..., object]) -> None:
    documents = "documents: .jsonl (one a line) or .txt (a blank line ends one)"
    sources = "source sentences of pairs, one a line; with --target, instead of --input"
    targets = "target sentences: line n of a file belongs to line n of its --source file"
    folder = "corpus folder: a new one, or an unfinished build of the same corpus"
    tokenizer = "of `janus-pt prep train-tokenizer`, of an export, or a tokenizer.json"
    source_tokenizer = "tokenizer of the sources of pairs (default: --tokenizer)"
    add("--input", nargs="+", default=[], metavar="FILE", help=documents)
    add("--source", nargs="+", default=[], metavar="FILE", help=sources)
    add("--target", nargs="+", default=[], metavar="FILE", help=targets)
    add("--output", required=True, type=Path, metavar="FOLDER", help=folder)
    add("--tokenizer", required=True, metavar="FILE", help=tokenizer)
    add("--source-tokenizer", metavar="FILE", help=source_tokenizer)


def _add_settings(add: Callable[..., object]) -> None:
    field = "field of .jsonl documents that holds the text (default: %(default)s)"
    # bos and eos are added when the sample is read.
    max_tokens = (
        "most tokens of a block, or of a side of a pair, without bos and eos; model.max_positions must "
        "be at least 2 more (default: %(default)s)"
    )
    on_error = (
        f"a bad input line stops the build, or is skipped and listed in {SKIPPED_NAME} "
        "(default: %(default)s)"
    )
    shard = "blocks or pairs of a shard (default: %(default)s)"
    overwrite = "remove the corpus in --output and build anew"
    add("--field", default="text", help=field)
    add("--max-tokens", type=int, default=510, help=max_tokens)
    add("--samples-per-shard", type=int, default=8192, help=shard)
    add("--workers", type=int, default=available_cores(), help="processes (default: all cores)")
    add("--on-error", choices=["stop", "skip"], default="stop", help=on_error)
    add("--overwrite", action="store_true", help=overwrite)


def _check_arguments(args: argparse.Namespace) -> None:
    if bool(args.input) == bool(args.source or args.target):
        raise UserError("give either --input files, or --source and --target files")
    if args.source_tokenizer and not args.source:
        raise UserError("--source-tokenizer: goes with --source and --target files only; remove it")
    if len(args.source) != len(args.target):
        raise UserError(
            f"--source has {len(args.source)} files and --target {len(args.target)}: they go in pairs"
        )
    for path in args.input:
        if format_suffix(path) not in (".txt", ".jsonl"):
            raise UserError(f"{path}: --input takes .txt and .jsonl files, plain or .gz, .xz, .zst")
    for name, least in (("max_tokens", MIN_TOKENS), ("samples_per_shard", 1), ("workers", 1)):
        value = getattr(args, name)
        if value < least:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} must be at least {least}, not {value}")


def run(args: argparse.Namespace) -> None:
    """Build the corpus and report its size. `UserError` for arguments that do not go together."""
    _check_arguments(args)
    inputs: list[tuple[str, ...]] = [(path,) for path in args.input]
    inputs.extend(zip(args.source, args.target, strict=True))
    source_tokenizer = None
    if args.source_tokenizer:
        source_tokenizer = load_tokenizer(args.source_tokenizer)
    request = CorpusRequest(
        tuple(inputs),
        load_tokenizer(args.tokenizer),
        args.field,
        args.max_tokens,
        args.samples_per_shard,
        source_tokenizer,
    )
    manifest = build(request, args.output, args.workers, args.on_error, args.overwrite)
    tokens = ", ".join(f"{count:,} {name} tokens" for name, count in manifest.tokens.items())
    print(f"{args.output}: {manifest.samples:,} samples, {tokens}, {len(manifest.shards)} shards")
    if manifest.skipped:
        listed_in = args.output / SKIPPED_NAME
        print(f"{manifest.skipped:,} input lines skipped, see {listed_in}", file=sys.stderr)
