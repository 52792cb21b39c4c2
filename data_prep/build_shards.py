"""Build a corpus (WebDataset shards of token ids, index, manifest) from text.

Documents, from .txt (a blank line ends a document) or .jsonl (one a line), cut into blocks of whole sentences:

    python data_prep/build_shards.py --input books.jsonl.xz --field text --tokenizer tokenizer.model --output corpus

Sentence pairs, line by line from two files; pairs with an empty or over-long side are dropped and listed:

    python data_prep/build_shards.py --source train.de --target train.en --tokenizer tokenizer.model --output pairs

Any file may be .gz, .xz or .zst. The same command goes on with a build that was killed; the bytes written are the
same for any number of workers and interruptions.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.encode import Encoded, encode_item, start_worker
from data_prep.files import fingerprint, format_suffix
from data_prep.inputs import Item, OnError, read_items
from data_prep.journal import SKIPPED_NAME, Journal
from data_prep.writer import ShardFile
from janus_pt.data.manifest import Manifest, Source, read_manifest
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError, entry_point
from janus_pt.utils.files import sync
from janus_pt.utils.processes import available_cores, map_in_order, worker_pool

TOKENIZER_NAME, SOURCE_TOKENIZER_NAME = "tokenizer.model", "source_tokenizer.model"
MIN_TOKENS = 16
ITEMS_AHEAD = 3
"""Work items in hand for each worker process."""


@dataclass(frozen=True)
class Request:
    """What is to be built; with the same request the same bytes come out."""

    inputs: tuple[tuple[str, ...], ...]
    """(file,) each, or (source file, target file)."""
    tokenizer: Tokenizer
    field: str = "text"
    """Of `.jsonl` documents."""
    max_tokens: int = 510
    samples_per_shard: int = 8192
    source_tokenizer: Tokenizer | None = None
    """Of the sources of pairs, where they have a vocabulary of their own."""

    @property
    def tokenizers(self) -> dict[str, tuple[str, Tokenizer]]:
        """File and tokenizer by the key in the manifest."""
        found = {"tokenizer": (TOKENIZER_NAME, self.tokenizer)}
        if self.source_tokenizer:
            found["source_tokenizer"] = (SOURCE_TOKENIZER_NAME, self.source_tokenizer)
        return found

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of a sample's token arrays."""
        return ("source", "target") if len(self.inputs[0]) == 2 else ("text",)

    def sources(self) -> tuple[Source, ...]:
        """The input files with their fingerprints: reads each once."""
        paths = [path for paths in self.inputs for path in paths]
        return tuple(
            Source(path=path, sha256=fingerprint(path), bytes=os.path.getsize(path))
            for path in paths
        )


def build(
    request: Request,
    folder: Path,
    workers: int | None = None,
    on_error: OnError = "stop",
    overwrite: bool = False,
) -> Manifest:
    """Build the corpus, or what is missing of it, and return its manifest. A finished one is only read.

    Raises:
        UserError: an input cannot be read or has no text, a line is bad and `on_error` is `stop`, or the folder
            holds something else.
    """
    sources = request.sources()
    journal = Journal(folder, _identity(request, sources), overwrite)
    try:
        if journal.finished:
            print(f"{folder}: finished already with these arguments, nothing to do")
            return read_manifest(folder)
        for name, tokenizer in request.tokenizers.values():
            tokenizer.save(folder / name)
            sync(folder / name)
        workers = workers or available_cores()
        source_model = request.source_tokenizer.model if request.source_tokenizer else None
        with worker_pool(
            workers, start_worker, request.tokenizer.model, request.max_tokens, source_model
        ) as pool:
            items = islice(
                read_items(request.inputs, request.field, on_error), journal.place.items, None
            )
            encoded = map_in_order(pool, encode_item, items, ahead=ITEMS_AHEAD * workers)
            _write_shards(_progress(encoded, sources), request, folder, journal)
        if not journal.shards:
            raise UserError(
                f"no text in {', '.join(source.path for source in sources)}: nothing to build"
            )
        manifest = _manifest(request, sources, journal)
        journal.finish(manifest)
        return manifest
    finally:
        journal.close()


def _write_shards(
    encoded: Iterator[tuple[Item, Encoded]], request: Request, folder: Path, journal: Journal
) -> None:
    """Write the samples behind the journal's place; `encoded` begins with the first item not wholly written."""
    begin = journal.place
    number = sum(shard.samples for shard in journal.shards)
    shard: ShardFile | None = None
    for index, (item, made) in enumerate(encoded, start=begin.items):
        taken = begin.taken if index == begin.items else 0
        if not taken:
            journal.skip([*item.bad, *made.bad])
        for sample in islice(made.samples(), taken, None):
            shard = shard or ShardFile(folder, len(journal.shards), request.fields)
            shard.write(number, sample)
            number += 1
            taken += 1
            if shard.samples == request.samples_per_shard:
                journal.add(shard.close(), index, taken)
                shard = None
    if shard is not None:
        journal.add(shard.close(), index + 1, 0)


def _progress(
    encoded: Iterator[tuple[Item, Encoded]], sources: tuple[Source, ...]
) -> Iterator[tuple[Item, Encoded]]:
    """Show the share of the input done, the time left and the text encoded a second."""
    layout = "{percentage:3.0f}%|{bar:30}| {elapsed}<{remaining}{postfix}"
    interval = 0.5 if sys.stderr.isatty() else 10.0
    start, text_bytes = time.monotonic(), 0
    with tqdm(
        total=sum(source.bytes for source in sources), bar_format=layout, mininterval=interval
    ) as bar:
        for item, made in encoded:
            yield item, made
            text_bytes += made.text_bytes
            rate = text_bytes / 1e6 / (time.monotonic() - start)
            bar.set_postfix_str(
                f"{text_bytes / 1e6:.1f} MB of text, {rate:.2f} MB/s", refresh=False
            )
            bar.update(item.position - bar.n)


def _identity(request: Request, sources: tuple[Source, ...]) -> dict[str, Any]:
    """What decides the corpus, content by content: two requests with the same identity give the same shards."""
    return {
        "fields": list(request.fields),
        "field": request.field,
        "inputs": [source.sha256 for source in sources],
        "max_tokens": request.max_tokens,
        "samples_per_shard": request.samples_per_shard,
        **{key: tokenizer.fingerprint for key, (_, tokenizer) in request.tokenizers.items()},
    }


def _manifest(request: Request, sources: tuple[Source, ...], journal: Journal) -> Manifest:
    entries = {
        key: {"file": name, "sha256": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
        for key, (name, tokenizer) in request.tokenizers.items()
    }
    totals: Counter[str] = sum((Counter(shard.tokens) for shard in journal.shards), Counter())
    content = {
        "fields": request.fields,
        "dtype": "uint16"
        if max(entry["vocab_size"] for entry in entries.values()) <= 2**16
        else "uint32",
        "samples": sum(shard.samples for shard in journal.shards),
        "tokens": dict(totals),
        "max_tokens": request.max_tokens,
        **entries,
        "sources": sources,
        "skipped": journal.place.skipped,
        "shards": journal.shards,
    }
    return Manifest.model_validate(content)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. `UserError` for arguments that do not go together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="FILE", help=".txt or .jsonl documents"
    )
    parser.add_argument(
        "--source", nargs="+", default=[], metavar="FILE", help="source sentences, one a line"
    )
    parser.add_argument(
        "--target", nargs="+", default=[], metavar="FILE", help="their targets, line by line"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="corpus folder"
    )
    parser.add_argument("--tokenizer", required=True, metavar="FILE", help="SentencePiece model")
    parser.add_argument(
        "--source-tokenizer", metavar="FILE", help="that of the sources (default: the same)"
    )
    parser.add_argument(
        "--field", default="text", help="field of .jsonl documents (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=510, help="of a block, without bos and eos (%(default)s)"
    )
    parser.add_argument(
        "--samples-per-shard", type=int, default=8192, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )
    parser.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="skip: list bad lines and go on",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="build anew in a folder that holds a corpus"
    )
    given = parser.parse_args(arguments)
    if bool(given.input) == bool(given.source or given.target):
        raise UserError("give either --input files, or --source and --target files")
    if given.source_tokenizer and not given.source:
        raise UserError(
            "--source-tokenizer: goes with --source and --target files only; leave it out"
        )
    if len(given.source) != len(given.target):
        raise UserError(
            f"--source has {len(given.source)} files and --target {len(given.target)}: they go in pairs"
        )
    for path in given.input:
        if format_suffix(path) not in (".txt", ".jsonl"):
            raise UserError(f"{path}: --input takes .txt and .jsonl files, plain or .gz, .xz, .zst")
    for name, least in (("max_tokens", MIN_TOKENS), ("samples_per_shard", 1), ("workers", 1)):
        if getattr(given, name) < least:
            raise UserError(
                f"--{name.replace('_', '-')} must be at least {least}, not {getattr(given, name)}"
            )
    return given


def main() -> None:
    """Build what the command line asks for and say what there is."""
    given = parse_arguments()
    pairs = zip(given.source, given.target, strict=True)
    inputs: tuple[tuple[str, ...], ...] = (*((path,) for path in given.input), *pairs)
    tokenizer = Tokenizer.load(given.tokenizer)
    of_sources = Tokenizer.load(given.source_tokenizer) if given.source_tokenizer else None
    request = Request(
        inputs, tokenizer, given.field, given.max_tokens, given.samples_per_shard, of_sources
    )
    manifest = build(request, given.output, given.workers, given.on_error, given.overwrite)
    tokens = ", ".join(f"{count:,} {name} tokens" for name, count in manifest.tokens.items())
    print(f"{given.output}: {manifest.samples:,} samples, {tokens}, {len(manifest.shards)} shards")
    if manifest.skipped:
        print(
            f"{manifest.skipped:,} input lines left out, see {given.output / SKIPPED_NAME}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    entry_point(main)
