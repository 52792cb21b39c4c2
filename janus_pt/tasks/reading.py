"""Reading a task's folder: examples as source and target texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_pt.tasks.table import Task
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import check_equally_long, read_lines, read_objects

LEVELS = ("easy", "medium", "hard")
"""GLGE's versions of its training sets."""


@dataclass(frozen=True)
class TaskSplit:
    """The examples of a split: texts, line by line."""

    sources: list[str]
    targets: list[str]


def read_split(task: Task, data: str | Path, split: str) -> TaskSplit:
    """Read a split from the data folder.

    `data` is the folder of the files or, for GLGE, any above it: `org_data`, the task's, a level's (`easy`, `medium`,
    `hard`), or the root if it has only one level.

    Raises:
        UserError: a file is missing, or files have different numbers of lines, or a line has an empty or no source or
            target; the message names file and line.
    """
    folder = find_folder(task, Path(data), split)
    paths = {name: folder / pattern.format(split=split) for name, pattern in task.files.items()}
    columns: dict[str, list[Any]] = {}
    for name, path in paths.items():
        columns[str(path)] = (
            read_objects(path) if path.suffix == ".jsonl" else [{name: x} for x in read_lines(path)]
        )
    check_equally_long(columns)
    examples = [
        {k: v for part in parts for k, v in part.items()}
        for parts in zip(*columns.values(), strict=True)
    ]
    places = {name: path for name, path in paths.items() if path.suffix != ".jsonl"}
    default = next(iter(paths.values()))
    sources = [
        _fill(task.source, example, places, default, line)
        for line, example in enumerate(examples, 1)
    ]
    targets = [
        _fill(task.target, example, places, default, line)
        for line, example in enumerate(examples, 1)
    ]
    return TaskSplit(sources, targets)


def find_folder(task: Task, data: Path, split: str) -> Path:
    """The folder with the task's files at or below `data`; `UserError` if there is none, or more than one level's."""
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; give the folder of the task's files")
    first = next(iter(task.files.values())).format(split=split)
    inner = Path(task.folder)
    for folder in (data, data / inner.name, data / inner) if task.folder else (data,):
        if _has(folder, first):
            return folder
    found = [level for level in LEVELS if task.folder and _has(data / level / inner, first)]
    if len(found) == 1:
        return data / found[0] / inner
    if found:
        raise UserError(
            f"{data}: has the levels {', '.join(found)}; give one of them, as in {data / found[0]}"
        )
    here = f", nor {inner / first}" if task.folder else ""
    raise UserError(
        f"{data}: has no {first}{here}; give the folder of the task's files, and a split that is there"
    )


def shorten(text: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    """The text, or its beginning that is at most `max_tokens` tokens long."""
    tokens, kept = tokenizer.encode(text), max_tokens
    first = tokens
    while (
        len(tokens) > max_tokens
    ):  # the beginning of a text may be cut into more pieces than it was before
        text = tokenizer.decode(first[:kept])
        tokens, kept = tokenizer.encode(text), kept - 1
    return text


def _has(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.gz").exists()


def _fill(
    template: str, example: dict[str, Any], places: dict[str, Path], default: Path, line: int
) -> str:
    """The template with the example's fields, on one line of text."""
    name = next((n for n in places if f"{{{n}}}" in template), "")
    place = f"{places.get(name, default)}, line {line}"
    try:
        text = template.format_map(_Fields(example))
    except KeyError as error:
        raise UserError(f"{place}: no field {error}; the task needs it") from None
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    return " ".join(text.split())


class _Fields(dict[str, Any]):
    """Fields of an example that must hold text."""

    def __getitem__(self, name: str) -> str:
        value = super().__getitem__(name)
        if not isinstance(value, str):
            raise ValueError(f"field {name!r} is not text")
        if not value.strip():
            raise ValueError(f"{name} is empty; remove the example from all files")
        return value
