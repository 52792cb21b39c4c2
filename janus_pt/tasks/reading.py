"""Read a task's folder: examples as source and target texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_pt.tasks.table import Task
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.text_files import check_equally_long, read_lines, read_objects

LEVELS = ("easy", "medium", "hard")
"""GLGE's versions of its training sets."""
Example = dict[str, Any]
"""Field -> value; from a JSON file the value may be anything."""


@dataclass(frozen=True)
class TaskSplit:
    """The examples of a split, line by line: sources and targets, the same number of each."""

    sources: list[str]
    targets: list[str]


def read_split(task: Task, data: str | Path, split: str) -> TaskSplit:
    """Read a split from the data folder.

    Args:
        data: the folder of the files; for GLGE any folder above it: `org_data`, the task's, a
            level's (`easy`, `medium`, `hard`), or the root if it has only one level.

    Raises:
        UserError: a file is missing, files have different numbers of lines, or a line has an empty
            or no source or target; the message names file and line.
    """
    folder = find_folder(task, Path(data), split)
    paths = {name: folder / pattern.format(split=split) for name, pattern in task.files.items()}
    columns = {str(path): _read_column(name, path) for name, path in paths.items()}
    check_equally_long(columns)
    examples = []
    for parts in zip(*columns.values(), strict=True):
        example: Example = {}
        for part in parts:
            example.update(part)
        examples.append(example)
    sources = _fill_all(task.source, examples, _file_behind(task.source, paths))
    targets = _fill_all(task.target, examples, _file_behind(task.target, paths))
    return TaskSplit(sources, targets)


def find_folder(task: Task, data: Path, split: str) -> Path:
    """The folder with the task's files at or below `data`.

    Raises:
        UserError: there is no such folder, or there is one for each of several levels.
    """
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; give the folder of the task's files")
    first_file = next(iter(task.files.values())).format(split=split)
    subfolder = Path(task.folder)
    candidates = [data]
    if task.folder:
        # `data` may be the task's folder, or hold it: squadqg_data/ or easy/.
        candidates += [data / subfolder.name, data / subfolder]
    for folder in candidates:
        if _has_file(folder, first_file):
            return folder
    levels = []
    if task.folder:
        levels = [level for level in LEVELS if _has_file(data / level / subfolder, first_file)]
    if len(levels) == 1:
        return data / levels[0] / subfolder
    if levels:
        # The levels have different training sets: none of them is a default.
        raise UserError(
            f"{data}: has the levels {', '.join(levels)}; give one of them, as in {data / levels[0]}"
        )
    also = f", nor {subfolder / first_file}" if task.folder else ""
    raise UserError(
        f"{data}: has no {first_file}{also}; give the folder of the task's files, and a split that "
        "is there"
    )


def shorten(text: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    """The text, or its longest beginning of whole characters that has at most `max_tokens` tokens.

    The beginning is as the tokenizer decodes it, which may normalise.
    """
    tokens = tokenizer.encode(text)
    if len(tokens) <= max_tokens:
        return text
    # The beginning of a text by itself may have more tokens than it had within the text: then one
    # token fewer is tried. An empty beginning has none, so this ends.
    kept = max_tokens + 1
    beginning = text
    while len(tokenizer.encode(beginning)) > max_tokens:
        kept -= 1
        while kept and tokenizer.continues_character(tokens[kept]):
            kept -= 1
        beginning = tokenizer.decode(tokens[:kept])
    return beginning


def _has_file(folder: Path, name: str) -> bool:
    """Whether the file is there, as it is or compressed."""
    return (folder / name).exists() or (folder / f"{name}.gz").exists()


def _read_column(name: str, path: Path) -> list[Example]:
    """The fields that a file gives: the fields of its objects, or one called `name`."""
    if path.suffix == ".jsonl":
        return read_objects(path)
    return [{name: line} for line in read_lines(path)]


def _file_behind(template: str, paths: dict[str, Path]) -> Path:
    """The file that is named where a template cannot be filled: its first field's, if known.

    A JSON file is not called after a field; where no file is, the first is named.
    """
    for name, path in paths.items():
        if path.suffix != ".jsonl" and f"{{{name}}}" in template:
            return path
    return next(iter(paths.values()))


def _fill_all(template: str, examples: Sequence[Example], path: Path) -> list[str]:
    return [
        _fill(template, example, f"{path}, line {number}")
        for number, example in enumerate(examples, start=1)
    ]


def _fill(template: str, example: Example, position: str) -> str:
    """The template with the example's fields, on one line; `position` is file and line."""
    try:
        text = template.format_map(_TextFields(example))
    except KeyError as error:
        raise UserError(f"{position}: no field {error}; the task needs it") from None
    except ValueError as error:
        raise UserError(f"{position}: {error}") from None
    # A line is an example in all files that are written from here on.
    return " ".join(text.split())


class _TextFields(dict[str, Any]):
    """Fields of an example of which the template takes only text that is not empty."""

    def __getitem__(self, name: str) -> str:
        value = super().__getitem__(name)
        if not isinstance(value, str):
            raise ValueError(f"field {name!r} is not text")
        if not value.strip():
            raise ValueError(f"{name} is empty; remove the example from all files")
        return value
