"""The data of a comparison: a task's folder, or pairs of a made-up language, as corpora."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from janus_pt.claims.language import made_up_pairs
from janus_pt.tasks.reading import TaskSplit, read_split
from janus_pt.tasks.table import PARALLEL_FILES, Task, find_task
from janus_pt.tokenizer import load_tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import write_atomically

MADE_UP_PAIRS = {"train": 6000, "dev": 200, "test": 200}
"""Pairs of the made-up language, used where no data are given."""


@dataclass(frozen=True)
class Data:
    """A task's data, and what becomes of them in the folder `output`.

    Attributes:
        task: name of the task's row.
        output: folder for the corpora and the tokenizer.
        given: the task's folder; None: pairs of a made-up language.
        splits: names of the parts for training, validation and test.
    """

    task: str
    output: Path
    given: str | None
    splits: tuple[str, str, str]

    @property
    def folder(self) -> Path:
        """Where the texts are."""
        return self.output / "pairs" if self.given is None else Path(self.given)

    @property
    def corpora(self) -> Path:
        """Folder with a corpus for each split."""
        return self.output / "corpora"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that is trained if none is given."""
        return self.output / "tokenizer.model"

    @property
    def row(self) -> Task:
        """The task's row."""
        return find_task(self.task)

    @property
    def test(self) -> TaskSplit:
        """The examples that are decoded and scored."""
        return read_split(self.row, self.folder, self.splits[2])


def prepare_data(data: Data, tokenizer: str | None, vocab_size: int) -> None:
    """Build the corpora, once.

    Args:
        tokenizer: a tokenizer's file; None: one of `vocab_size` pieces is trained on the training
            split.

    Raises:
        UserError: the data cannot be read, or the folder was made with other data.
    """
    if data.given is None and dict(data.row.files) != PARALLEL_FILES:
        raise UserError(
            f"--task {data.task}: needs its data; give --data, or leave both out for the made-up "
            "language"
        )
    data.output.mkdir(parents=True, exist_ok=True)
    # Once: the same command goes on where it was stopped, with the same pairs.
    if data.given is None and not data.folder.exists():
        _write_made_up_pairs(data.folder)
    texts = {split: read_split(data.row, data.folder, split) for split in data.splits}
    identity = {
        "task": data.task,
        "texts": {name: _texts_hash(split) for name, split in texts.items()},
        "tokenizer": tokenizer or f"{vocab_size} pieces",
    }
    # Written last: as long as it is missing, a killed call has left the corpora half built.
    done = data.output / "data.json"
    if done.exists():
        if json.loads(done.read_text()) != identity:
            raise UserError(
                f"{data.output}: was made of other data or with another tokenizer; give another "
                "--output"
            )
        return
    if tokenizer is not None:
        # A file that is no tokenizer is found before the corpora are built.
        load_tokenizer(tokenizer)
    else:
        _train_tokenizer(data, texts[data.splits[0]], vocab_size)
    _build_corpora(data, tokenizer or str(data.tokenizer))
    write_atomically(done, json.dumps(identity, indent=1))


def _write_made_up_pairs(folder: Path) -> None:
    # Renamed when all files are there: `prepare_data` takes a folder that exists as complete.
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    for seed, (split, count) in enumerate(MADE_UP_PAIRS.items()):
        pairs = made_up_pairs(count, seed)
        sources = "".join(f"{source}\n" for source, _ in pairs)
        targets = "".join(f"{target}\n" for _, target in pairs)
        (partial / f"{split}.src").write_text(sources, encoding="utf-8")
        (partial / f"{split}.tgt").write_text(targets, encoding="utf-8")
    partial.rename(folder)


def _texts_hash(split: TaskSplit) -> str:
    return hashlib.sha256("\n".join(split.sources + split.targets).encode()).hexdigest()


def _train_tokenizer(data: Data, train: TaskSplit, vocab_size: int) -> None:
    """One vocabulary for both sides, as the models share their embedding."""
    text = data.output / "train.txt"
    text.write_text("\n".join(train.sources + train.targets) + "\n", encoding="utf-8")
    options = {"--input": text, "--vocab-size": vocab_size, "--output": data.tokenizer}
    _run_tool("train-tokenizer", options)


def _build_corpora(data: Data, tokenizer: str) -> None:
    """Corpora of the first two splits; the third is decoded from its text."""
    options = {
        "--task": data.task,
        "--data": data.folder,
        "--tokenizer": tokenizer,
        "--output": data.corpora,
    }
    _run_tool("build-task", options, "--splits", *data.splits[:2], "--overwrite")


def _run_tool(tool: str, options: Mapping[str, object], *more: str) -> None:
    """Run `janus-pt prep TOOL` in its own process; its message says what went wrong.

    A process of its own, since the tools start workers, and print what is no part of the report.
    """
    arguments = [str(part) for option in options.items() for part in option]
    command = [sys.executable, "-m", "janus_pt", "prep", tool, *arguments, *more]
    code = subprocess.run(command, stdout=sys.stderr).returncode
    if code:
        raise SystemExit(code)
