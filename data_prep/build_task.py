"""Build the corpora of a task, one for each split, from its data folder.

    python data_prep/build_task.py --task glge/squad_qg --data DIR --tokenizer tokenizer.model --output corpora

What a source and a target are made of, and how long they may be, says the task's row in janus_pt/tasks/table.py:
longer sources are cut (of translation pairs they are not), pairs that are still too long are left out and counted.
Each split's folder is a corpus as of data_prep/build_shards.py, with the texts it was built from beside it in
`SPLIT.source` and `SPLIT.target`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.build_shards import Request, build
from janus_pt.tasks.reading import TaskSplit, read_split, shorten
from janus_pt.tasks.table import Task, find_task
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError, entry_point
from janus_pt.utils.files import make_folder, write_atomically
from janus_pt.utils.processes import available_cores


def fitting_pairs(
    task: Task, examples: TaskSplit, of_sources: Tokenizer, of_targets: Tokenizer
) -> list[tuple[str, str]]:
    """Sources and targets that fit the task's lengths in their tokenizers."""
    limit = task.max_source_tokens
    sources = [
        shorten(text, of_sources, limit) if task.cut_sources else text for text in examples.sources
    ]
    sides = ((of_sources, sources), (of_targets, examples.targets))
    lengths = [[len(ids) for ids in tokenizer.encode_batch(texts)] for tokenizer, texts in sides]
    return [
        (source, target)
        for source, target, read, written in zip(sources, examples.targets, *lengths, strict=True)
        if read <= limit and written <= task.max_target_tokens
    ]


def write_pairs(
    pairs: list[tuple[str, str]], split: str, output: Path, overwrite: bool
) -> tuple[str, str]:
    """Write sources and targets, one a line; returns the two files' names.

    Raises:
        UserError: a corpus of other texts is there and `overwrite` is unset.
    """
    make_folder(output)
    names = output / f"{split}.source", output / f"{split}.target"
    contents = ["".join(text + "\n" for text in texts) for texts in zip(*pairs, strict=True)]
    for path, content in zip(names, contents, strict=True):
        if (
            not overwrite
            and (output / split).exists()
            and path.exists()
            and path.read_text("utf-8") != content
        ):
            raise UserError(
                f"{output / split}: holds a corpus of other texts; give another --output, or --overwrite"
            )
    for path, content in zip(names, contents, strict=True):
        write_atomically(path, content)
    return str(names[0]), str(names[1])


def main() -> None:
    """Build what the command line asks for and say what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True, help="nmt, nmt/de-en, glge/NAME or another row")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the task's data folder")
    parser.add_argument("--tokenizer", required=True, metavar="FILE", help="SentencePiece model")
    parser.add_argument(
        "--source-tokenizer", metavar="FILE", help="that of the sources (default: the same)"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="gets a corpus for each split"
    )
    parser.add_argument(
        "--splits", nargs="+", default=["train", "dev"], help="(default: train dev)"
    )
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: all cores)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="build anew in a folder that holds a corpus"
    )
    given = parser.parse_args()
    if given.workers < 1:
        raise UserError(f"--workers must be at least 1, not {given.workers}")
    task, tokenizer = find_task(given.task), Tokenizer.load(given.tokenizer)
    of_sources = Tokenizer.load(given.source_tokenizer) if given.source_tokenizer else None
    for split in given.splits:
        examples = read_split(task, given.data, split)
        pairs = fitting_pairs(task, examples, of_sources or tokenizer, tokenizer)
        if not pairs:
            raise UserError(f"{given.data}: every pair of {split} is too long for {given.task}")
        limit = max(task.max_source_tokens, task.max_target_tokens)
        files = (write_pairs(pairs, split, given.output, given.overwrite),)
        request = Request(files, tokenizer, max_tokens=limit, source_tokenizer=of_sources)
        manifest = build(request, given.output / split, given.workers, overwrite=given.overwrite)
        left_out = len(examples.sources) - manifest.samples
        print(
            f"{given.output / split}: {manifest.samples:,} pairs; {left_out:,} were left out: too long, or no token"
        )


if __name__ == "__main__":
    entry_point(main)
