"""Build the corpora of a task, one for each split, from its data folder.

    janus-pt prep build-task --task glge/squad_qg --data DIR --tokenizer tokenizer.model --output corpora

The task's row in janus_pt/tasks/table.py says how a source and a target are made, and how long they may be: longer
sources are cut (except in translation), pairs that are still too long are dropped and counted.
Each split's folder is a corpus as of `janus-pt prep build-shards`, with the texts it was built from beside it in
`SPLIT.source` and `SPLIT.target`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from janus_pt.data_prep.build_shards import CorpusRequest, build
from janus_pt.tasks.reading import TaskSplit, read_split, shorten
from janus_pt.tasks.table import Task, find_task
from janus_pt.tokenizer import Tokenizer, load_tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, write_atomically
from janus_pt.utils.processes import available_cores


def fitting_pairs(
    task: Task, examples: TaskSplit, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer
) -> list[tuple[str, str]]:
    """Sources and targets that fit the task's lengths in their tokenizers."""
    sources = list(examples.sources)
    if task.cut_sources:
        sources = [shorten(text, source_tokenizer, task.max_source_tokens) for text in sources]
    source_ids = source_tokenizer.encode_batch(sources)
    target_ids = target_tokenizer.encode_batch(examples.targets)
    pairs = []
    for number, pair in enumerate(zip(sources, examples.targets, strict=True)):
        source_fits = len(source_ids[number]) <= task.max_source_tokens
        target_fits = len(target_ids[number]) <= task.max_target_tokens
        if source_fits and target_fits:
            pairs.append(pair)
    return pairs


def write_pairs(
    pairs: list[tuple[str, str]], split: str, output: Path, overwrite: bool
) -> tuple[str, str]:
    """Write sources and targets, one a line; returns the two files' names.

    Raises:
        UserError: a corpus of other texts is there and `overwrite` is unset.
    """
    make_folder(output)
    source_path = output / f"{split}.source"
    target_path = output / f"{split}.target"
    contents = {
        source_path: "".join(source + "\n" for source, _ in pairs),
        target_path: "".join(target + "\n" for _, target in pairs),
    }
    # Both are checked before one is written: files and corpus must come from one build.
    if not overwrite and (output / split).exists():
        for path, content in contents.items():
            if path.exists() and path.read_text("utf-8") != content:
                raise UserError(
                    f"{output / split}: holds a corpus of other texts; give another --output, or --overwrite"
                )
    for path, content in contents.items():
        write_atomically(path, content)
    return str(source_path), str(target_path)


def build_split(
    args: argparse.Namespace,
    task: Task,
    split: str,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer | None,
) -> None:
    """Build the corpus of one split and report its size."""
    examples = read_split(task, args.data, split)
    pairs = fitting_pairs(task, examples, source_tokenizer or tokenizer, tokenizer)
    if not pairs:
        raise UserError(f"{args.data}: every pair of {split} is too long for {args.task}")
    request = CorpusRequest(
        inputs=(write_pairs(pairs, split, args.output, args.overwrite),),
        tokenizer=tokenizer,
        # One limit for both sides: the pairs that are longer than the task allows are dropped already.
        max_tokens=max(task.max_source_tokens, task.max_target_tokens),
        source_tokenizer=source_tokenizer,
    )
    folder = args.output / split
    manifest = build(request, folder, args.workers, overwrite=args.overwrite)
    dropped = len(examples.sources) - manifest.samples
    print(f"{folder}: {manifest.samples:,} pairs; {dropped:,} were skipped: too long, or no token")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep build-task`."""
    add = parser.add_argument
    add(
        "--task",
        required=True,
        help="row of janus_pt/tasks/table.py: nmt, nmt/SOURCE-TARGET (as nmt/de-en), glge/NAME, ...",
    )
    add("--data", required=True, metavar="FOLDER", help="the task's data folder")
    add("--tokenizer", required=True, metavar="FILE", help="tokenizer file of any kind")
    add(
        "--source-tokenizer",
        metavar="FILE",
        help="tokenizer of the sources (default: --tokenizer)",
    )
    add(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="gets a corpus for each split",
    )
    add(
        "--splits",
        nargs="+",
        default=["train", "dev"],
        help="splits to build, by the names of their files (default: train dev)",
    )
    add("--workers", type=int, default=available_cores(), help="processes (default: all cores)")
    add("--overwrite", action="store_true", help="remove the corpora there and build anew")


def run(args: argparse.Namespace) -> None:
    """Build the corpora of all splits."""
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    task = find_task(args.task)
    tokenizer = load_tokenizer(args.tokenizer)
    source_tokenizer = None
    if args.source_tokenizer:
        source_tokenizer = load_tokenizer(args.source_tokenizer)
    for split in args.splits:
        build_split(args, task, split, tokenizer, source_tokenizer)
