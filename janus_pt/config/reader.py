"""One JSON file -> `Config`, or one message with everything that is wrong with it and where."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from janus_pt.checks import MAX_REPORTED, REQUIRED, KeyPath, Problem, find_problems
from janus_pt.config.schema import Config
from janus_pt.utils.errors import UserError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_SHOWN = 200
"""Characters of a key or `--set` that a message repeats."""

Places = dict[KeyPath, tuple[int, str]]
"""Where each value was given: line and "FILE:LINE", or the `--set` that gave it."""

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,\n]|[^\s{}\[\]:,"]+')


def read_config(
    path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None
) -> Config:
    """Read and check a configuration file.

    `overrides` are `dotted.key=value` of the command line's `--set`, the value as JSON or else as a string; list
    items go by their index (`data.train.0.path=…`). `world_size` is the number of ranks that share a step, when it
    is known. With `run.init_from`, `model` may leave out what the export says. Raises `UserError` with every problem
    at once: file and line, dotted key, reason, what to change.
    """
    text = _read_text(Path(path))
    data = _parse(text, path)
    places, problems = _locate(text, path)
    for override in overrides:
        problems += _override(data, places, override)
    _require_unicode(data, path)
    orphaned = _inherit_model(data)
    found = find_problems(data, world_size)
    problems += orphaned + [
        p for p in found if not (orphaned and p[0][0] == "model" and p[1] == REQUIRED)
    ]
    if problems:
        raise UserError(_message(problems, places, path))
    return Config.model_validate(data)


def to_json(config: Config) -> str:
    """The resolved configuration as JSON that `read_config` reads back to an equal one."""
    return config.model_dump_json(indent=2) + "\n"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a JSON configuration"
        ) from None
    if len(content) > MAX_BYTES:
        raise UserError(
            f"{path}: larger than {MAX_BYTES >> 20} MiB; give the path of a JSON configuration"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not valid UTF-8; save the file as UTF-8 text") from None


def _parse(text: str, path: str | Path) -> dict[str, Any]:
    try:
        data = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}: column {error.colno}"
        raise UserError(f"{place}: broken JSON ({error.msg}); correct the text there") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: broken JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(
            f"{path}:1: expected an object with the sections {', '.join(Config.model_fields)}"
        )
    return data


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number; write a finite one")


def _require_unicode(data: dict[str, Any], path: str | Path) -> None:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: a string holds half of a surrogate pair (\\ud800 to \\udfff); correct it"
        ) from None


def _locate(text: str, file: str | Path) -> tuple[Places, list[Problem]]:
    """The place of every key and list item of a JSON text known to be valid, and the keys given twice."""
    places: Places = {(): (1, f"{file}:1")}
    problems: list[Problem] = []
    tokens = _tokens(text)

    def read_value(path: KeyPath, opening: str) -> None:
        if len(path) > MAX_DEPTH:
            raise UserError(
                f"{file}: nested more than {MAX_DEPTH} deep; this cannot be a configuration file"
            )
        first_line: dict[str | int, int] = {}
        index = 0
        for token, line in tokens if opening in "{[" else ():
            if token in ("}", "]"):
                return
            if token == ",":
                index += 1
                continue
            key = json.loads(token) if opening == "{" else index
            if key in first_line:
                problems.append(
                    (
                        (*path, key),
                        f"given twice, first on line {first_line[key]}: remove one of them",
                    )
                )
            first_line.setdefault(key, line)
            places[(*path, key)] = (line, f"{file}:{line}")
            if opening == "{":
                next(tokens)  # the colon
                token, _ = next(tokens)
            read_value((*path, key), token)

    read_value((), next(tokens)[0])
    return places, problems


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Tokens of a valid JSON text, each with its line."""
    line = 1
    for match in TOKEN.finditer(text):
        if match.group() == "\n":
            line += 1
        else:
            yield match.group(), line


def _override(data: dict[str, Any], places: Places, override: str) -> list[Problem]:
    """Put one `--set` into `data` and `places`; returns what is wrong with it."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    place = (sys.maxsize, f"--set {override[:MAX_SHOWN]}")
    if not equals or "" in keys:
        places[(override,)] = place
        return [((override,), "write it as dotted.key=value, as in run.max_steps=100")]
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = text
    target: Any = data
    path: KeyPath = ()
    for depth, key in enumerate(keys, 1):
        in_list = isinstance(target, list) and key.isdecimal() and int(key) < len(target)
        path = (*path, int(key) if in_list else key)
        places.setdefault(path, place)
        if not in_list and not isinstance(target, dict):
            what = (
                f"a list of {len(target)} items, counted from 0"
                if isinstance(target, list)
                else "no object"
            )
            return [(path, f"cannot be set: {'.'.join(keys[: depth - 1])} is {what}")]
        if depth == len(keys):
            target[path[-1]] = value
        else:
            target = target[path[-1]] if in_list else target.setdefault(key, {})
    for below in [known for known in places if known[: len(path)] == path]:
        del places[below]
    places[path] = place
    return []


def _inherit_model(data: dict[str, Any]) -> list[Problem]:
    """With `run.init_from`, what `model` leaves out is the export's; the problem, if there is no export."""
    run, given = data.get("run"), data.get("model", {})
    origin = run.get("init_from") if isinstance(run, dict) else None
    if isinstance(origin, str) and isinstance(given, dict):
        from janus_pt.export.adapters import (
            ADAPTER_CONFIG,
        )  # imports torch: only where it is needed
        from janus_pt.export.folder import read_export_config

        try:
            data["model"] = {**read_export_config(origin).model.model_dump(), **given}
        except UserError as error:
            adapters = (Path(origin) / ADAPTER_CONFIG).is_file()
            hint = (
                "; there are adapters: give the merged model, the folder export/ beside them"
                if adapters
                else ""
            )
            return [(("run", "init_from"), f"{error}{hint}")]
    return []


def _message(problems: list[Problem], places: Places, path: str | Path) -> str:
    """All problems in the order of the file, each with its place and dotted key."""
    lines = []
    for keys, reason in problems:
        known = next(keys[:end] for end in range(len(keys), -1, -1) if keys[:end] in places)
        dotted = ".".join(map(str, keys))
        lines.append((places[known], f"{places[known][1]}: {dotted[:MAX_SHOWN]}: {reason}"))
    told = [line for _, line in sorted(lines, key=itemgetter(0))[:MAX_REPORTED]]
    if len(lines) == 1:
        return told[0]
    return "\n  ".join([f"{len(lines)} problems in the configuration:", *told])
