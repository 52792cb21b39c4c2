"""The data of a comparison: a task's folder, or text of the project's own making, as corpora with a tokenizer."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from janus_pt.claims.language import made_up_pairs
from janus_pt.tasks.reading import TaskSplit, read_split
from janus_pt.tasks.table import PARALLEL_FILES, Task, find_task
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
MADE_UP = {"train": 6000, "dev": 200, "test": 200}
"""Pairs of a made-up language, where no data are given."""


@dataclass(frozen=True)
class Data:
    """What a task's data become in the folder `output`.

    given: the task's folder; None: pairs of a made-up language. splits: names of the parts for training,
    validation and test.
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
        """A corpus for each split."""
        return self.output / "corpora"

    @property
    def tokenizer(self) -> Path:
        """The SentencePiece model of all systems."""
        return self.output / "tokenizer.model"

    @property
    def row(self) -> Task:
        """The task's row."""
        return find_task(self.task)

    @property
    def test(self) -> TaskSplit:
        """What is decoded and scored."""
        return read_split(self.row, self.folder, self.splits[2])


def prepare_data(data: Data, tokenizer: str | None, vocab_size: int) -> None:
    """Build the corpora, once.

    Args:
        tokenizer: SentencePiece model; None: one of `vocab_size` pieces is trained on the training split.

    Raises:
        UserError: the data cannot be read, or the folder was made with other data.
    """
    if data.given is None and dict(data.row.files) != PARALLEL_FILES:
        raise UserError(
            f"--task {data.task}: needs its data; give --data, or leave both out for the made-up language"
        )
    data.output.mkdir(parents=True, exist_ok=True)
    if data.given is None and not data.folder.exists():
        _make_pairs(data.folder)
    found = {split: read_split(data.row, data.folder, split) for split in data.splits}
    made = {
        "task": data.task,
        "texts": _fingerprint(found),
        "tokenizer": tokenizer or f"{vocab_size} pieces",
    }
    done = data.output / "data.json"
    if done.exists():
        if json.loads(done.read_text()) != made:
            raise UserError(
                f"{data.output}: was made of other data or with another tokenizer; give another --output"
            )
        return
    if tokenizer is not None:
        Tokenizer.load(tokenizer).save(data.tokenizer)
    else:
        text, train = data.output / "train.txt", found[data.splits[0]]
        text.write_text("\n".join(train.sources + train.targets) + "\n", encoding="utf-8")
        _run(
            "train_tokenizer.py",
            "--input",
            text,
            "--vocab-size",
            vocab_size,
            "--output",
            data.tokenizer,
        )
    arguments = (
        "--task",
        data.task,
        "--data",
        data.folder,
        "--tokenizer",
        data.tokenizer,
        "--output",
        data.corpora,
    )
    _run("build_task.py", *arguments, "--splits", *data.splits[:2], "--overwrite")
    write_atomically(done, json.dumps(made, indent=1))


def _make_pairs(folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    for seed, (split, count) in enumerate(MADE_UP.items()):
        for side, texts in zip(
            ("src", "tgt"), zip(*made_up_pairs(count, seed), strict=True), strict=True
        ):
            (partial / f"{split}.{side}").write_text(
                "".join(text + "\n" for text in texts), encoding="utf-8"
            )
    partial.rename(folder)


def _fingerprint(splits: dict[str, TaskSplit]) -> dict[str, str]:
    return {
        name: hashlib.sha256("\n".join(split.sources + split.targets).encode()).hexdigest()
        for name, split in splits.items()
    }


def _run(script: str, *arguments: object) -> None:
    """A script of data_prep; its own message tells what is wrong."""
    command = [sys.executable, str(ROOT / "data_prep" / script), *map(str, arguments)]
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(code)
