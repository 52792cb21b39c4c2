"""One JSON file -> `Config`, or one message with everything that is wrong with it and where."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from janus_pt.config.content import Limits, validate
from janus_pt.config.exported import ADAPTER_CONFIG, read_export_config
from janus_pt.config.locations import Location, Locations, locate, location_of
from janus_pt.config.messages import MAX_REPORTED, REQUIRED, KeyPath, Problem, explain
from janus_pt.config.schema import Config
from janus_pt.config.section import Section
from janus_pt.config.shipped import config_path
from janus_pt.utils.errors import UserError

Root = TypeVar("Root", bound=Section)

MAX_BYTES = 1 << 20
MAX_SHOWN = 200
"""Characters of a key or `--set` that a message repeats."""
COMMAND_LINE = sys.maxsize
"""The line of what `--set` gives: behind all lines of the file."""


def read_limited_config(
    path: str | Path, overrides: Sequence[str], world_size: int | None, limits: Limits
) -> Config:
    """Read and check a configuration; `janus_pt.checks.read_config` does it with the limits of
    all rooms.

    Args:
        path: a JSON file, or the name of a configuration of the package.
        overrides: `dotted.key=value` of the command line's `--set`, the value as JSON or else as a
            string; list items go by their index (`data.train.0.path=…`).
        world_size: ranks that share a step, if known.
        limits: what the sections may say together.

    With `run.init_from`, `model` may lack what the export says.

    Raises:
        UserError: every problem at once, with file and line, dotted key, reason, and what to
            change.
    """
    data, locations, problems = _read_data(path, overrides, Config)
    export_problems = _inherit_model(data)
    problems += export_problems
    config, content_problems = validate(data, world_size, limits)
    for problem in content_problems:
        (section, *_), reason = problem
        # Without its export the model lacks keys, which is no problem of its own.
        if not (export_problems and section == "model" and reason == REQUIRED):
            problems.append(problem)
    if problems or config is None:
        raise UserError(_message(problems, locations))
    return config


def read_section(
    path: str | Path,
    overrides: Sequence[str],
    root: type[Root],
    limits: Callable[[Root], Iterable[Problem]],
) -> Root:
    """Read a file that is no run's configuration, with the same rules and messages.

    Args:
        path: a JSON file, or the name of a configuration of the package.
        overrides: as for a run's configuration.
        root: the section that describes the whole file.
        limits: problems of a valid file, of what its keys say together.

    Raises:
        UserError: every problem at once.
    """
    data, locations, problems = _read_data(path, overrides, root)
    try:
        section = root.model_validate(data)
    except ValidationError as error:
        raise UserError(_message([*problems, *explain(error, root)], locations)) from None
    problems += limits(section)
    if problems:
        raise UserError(_message(problems, locations))
    return section


def _read_data(
    path: str | Path, overrides: Sequence[str], root: type[Section]
) -> tuple[dict[str, Any], Locations, list[Problem]]:
    """The values of a file with the overrides put in, where each was given, and keys given twice."""
    path = config_path(path, corpora=root is not Config)
    text = _read_text(path)
    data = _parse(text, path, root)
    locations, problems = locate(text, path)
    for override in overrides:
        problems += _override(data, locations, override)
    _require_unicode(data, path)
    return data, locations, problems


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
        # Some editors begin a file with a byte order mark.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not valid UTF-8; save the file as UTF-8 text") from None


def _parse(text: str, path: str | Path, root: type[Section]) -> dict[str, Any]:
    try:
        data = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}: column {error.colno}"
        raise UserError(f"{where}: broken JSON ({error.msg}); correct the text there") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: broken JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(
            f"{path}:1: expected an object with the sections {', '.join(root.model_fields)}"
        )
    return data


def _refuse(constant: str) -> Any:
    """Python's parser would take NaN and Infinity, which are not JSON."""
    raise ValueError(f"{constant} is not a JSON number; write a finite one")


def _require_unicode(data: dict[str, Any], path: str | Path) -> None:
    """Half of a surrogate pair is valid JSON, but cannot be printed or written to a file."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: a string holds half of a surrogate pair (\\ud800 to \\udfff); correct it"
        ) from None


def _override(data: dict[str, Any], locations: Locations, override: str) -> list[Problem]:
    """Put one `--set` into `data` and `locations`; returns its problems."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    location = Location(COMMAND_LINE, f"--set {override[:MAX_SHOWN]}")
    if not equals or "" in keys:
        locations[(override,)] = location
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
        locations.setdefault(path, location)
        if not in_list and not isinstance(target, dict):
            return [(path, _no_such_place(keys[: depth - 1], target))]
        if depth == len(keys):
            target[path[-1]] = value
        elif in_list:
            target = target[path[-1]]
        else:
            target = target.setdefault(key, {})
    # What the file said below this key is gone with it.
    for replaced in [known for known in locations if known[: len(path)] == path]:
        del locations[replaced]
    locations[path] = location
    return []


def _no_such_place(keys: Sequence[str], target: Any) -> str:
    """Why nothing can be set inside of `target`, which `keys` lead to."""
    kind = "no object"
    if isinstance(target, list):
        kind = f"a list of {len(target)} items, counted from 0"
    return f"cannot be set: {'.'.join(keys)} is {kind}"


def _inherit_model(data: dict[str, Any]) -> list[Problem]:
    """With `run.init_from`, give `model` the keys of the export that it lacks.

    Returns the problem, if there is no export.
    """
    run, model = data.get("run"), data.get("model", {})
    origin = run.get("init_from") if isinstance(run, dict) else None
    # Values of other types are reported when the content is validated.
    if not isinstance(origin, str) or not isinstance(model, dict):
        return []
    try:
        exported = read_export_config(origin).model
    except UserError as error:
        reason = str(error)
        if (Path(origin) / ADAPTER_CONFIG).is_file():
            reason += "; there are adapters: give the merged model, the folder export/ beside them"
        return [(("run", "init_from"), reason)]
    data["model"] = {**exported.model_dump(), **model}
    return []


def _message(problems: Sequence[Problem], locations: Locations) -> str:
    """All problems in the order of the file, each with its location and dotted key."""
    located = []
    for path, reason in problems:
        location = location_of(path, locations)
        dotted = ".".join(map(str, path))
        located.append((location, f"{location.text}: {dotted[:MAX_SHOWN]}: {reason}"))
    # By location alone: problems of one line stay in the order they were found in.
    located.sort(key=lambda pair: pair[0])
    lines = [line for _, line in located[:MAX_REPORTED]]
    if len(problems) == 1:
        return lines[0]
    return "\n  ".join([f"{len(problems)} problems in the configuration:", *lines])
