"""The data of a comparison: a task's folder, or pairs of a made-up language, as corpora."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_pt.claims.language import made_up_pairs
from janus_pt.config.schema import ModelConfig
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
        output: folder for the corpora and the tokenizers.
        given: the task's folder; None: made here.
        splits: names of the parts for training, validation and test.
        prep: command of `janus-pt prep` that makes the texts where none are given; None: they are
            pairs of a made-up language.
    """

    task: str
    output: Path
    given: str | None
    splits: tuple[str, str, str]
    prep: str | None = None

    @property
    def folder(self) -> Path:
        """Where the texts are."""
        if self.given is not None:
            return Path(self.given)
        return self.output / (self.prep or "pairs")

    @property
    def corpora(self) -> Path:
        """Folder with a corpus for each split."""
        return self.output / "corpora"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that is trained if none is given."""
        return self.output / "tokenizer.model"

    @property
    def source_tokenizer(self) -> Path | None:
        """The sources' own, which is trained where the task's row asks for one."""
        return self.output / "source_tokenizer.model" if self.row.tokenizers else None

    @property
    def row(self) -> Task:
        """The task's row."""
        return find_task(self.task)

    @property
    def test(self) -> TaskSplit:
        """The examples that are decoded and scored."""
        return read_split(self.row, self.folder, self.splits[2])


def prepare_data(data: Data, tokenizer: str | None, model: ModelConfig) -> None:
    """Build the corpora, once.

    Args:
        tokenizer: a tokenizer's file; None: one is trained on the training split, or one for each
            side.
        model: has the size of the vocabulary, or of both.

    Raises:
        UserError: the data cannot be read, the folder was made with other data, or the model has
            other vocabularies than the texts.
    """
    if tokenizer is not None and data.source_tokenizer is not None:
        raise UserError(
            f"--task {data.task}: has a tokenizer for each side, which are trained on its texts; "
            "leave --tokenizer and run.init_from out"
        )
    made_up = data.given is None and data.prep is None
    if made_up and dict(data.row.files) != PARALLEL_FILES:
        raise UserError(
            f"--task {data.task}: needs its data; give --data, or leave both out for the made-up "
            "language"
        )
    data.output.mkdir(parents=True, exist_ok=True)
    # Once: the same command goes on where it was stopped, with the same pairs.
    if not data.folder.exists() and data.prep is not None:
        _run_prep(data.prep, data.folder)
    elif made_up and not data.folder.exists():
        _write_made_up_pairs(data.folder)
    texts = {split: read_split(data.row, data.folder, split) for split in data.splits}
    identity = {
        "task": data.task,
        "texts": {name: _texts_hash(split) for name, split in texts.items()},
        "tokenizer": tokenizer or f"{model.vocab_size} pieces",
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
        _train_tokenizers(data, texts[data.splits[0]], model)
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


def _run_prep(command: str, folder: Path) -> None:
    """Make the texts in `folder`."""
    # Renamed when all files are there: `prepare_data` takes a folder that exists as complete.
    partial = folder.with_suffix(".partial")
    _run_tool(command, {"--output": partial})
    partial.rename(folder)


def _train_tokenizers(data: Data, train: TaskSplit, model: ModelConfig) -> None:
    """One vocabulary for both sides, as the models share their embedding; or the row's two.

    Raises:
        UserError: the model has other numbers of tokens than the two.
    """
    if data.source_tokenizer is None:
        options = {"--vocab-size": model.vocab_size}
        _train_tokenizer(train.sources + train.targets, data.tokenizer, options)
        return
    assert data.row.tokenizers is not None
    sides = (train.sources, train.targets)
    paths = (data.source_tokenizer, data.tokenizer)
    for texts, path, model_type in zip(sides, paths, data.row.tokenizers, strict=True):
        _train_tokenizer(texts, path, {"--model-type": model_type})
    sizes = [load_tokenizer(path).vocab_size for path in paths]
    if sizes != [model.source_vocab_size, model.vocab_size]:
        raise UserError(
            f"{data.folder}: its texts have other vocabularies than the model; give --set "
            f"model.source_vocab_size={sizes[0]} --set model.vocab_size={sizes[1]}"
        )


def _train_tokenizer(texts: Sequence[str], path: Path, options: Mapping[str, object]) -> None:
    """Train a tokenizer on lines, which stay beside it."""
    lines = path.with_suffix(".txt")
    lines.write_text("\n".join(texts) + "\n", encoding="utf-8")
    _run_tool("train-tokenizer", {"--input": lines, "--output": path, **options})


def _build_corpora(data: Data, tokenizer: str) -> None:
    """Corpora of the first two splits; the third is decoded from its text."""
    options: dict[str, object] = {
        "--task": data.task,
        "--data": data.folder,
        "--tokenizer": tokenizer,
        "--output": data.corpora,
    }
    if data.source_tokenizer is not None:
        options["--source-tokenizer"] = data.source_tokenizer
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
