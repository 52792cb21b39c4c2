"""Where each value of a configuration was given: file and line, or the `--set` of the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from janus_pt.config.messages import KeyPath, Problem
from janus_pt.utils.errors import UserError

MAX_DEPTH = 50
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,\n]|[^\s{}\[\]:,"]+')
"""A string, a mark, the end of a line, or a word (number, true, false, null)."""


@dataclass(frozen=True, order=True)
class Location:
    """`line` orders problems as the file has them; `text` is "FILE:LINE" or "--set KEY=VALUE"."""

    line: int
    text: str


Locations = dict[KeyPath, Location]


def locate(text: str, file: str | Path) -> tuple[Locations, list[Problem]]:
    """The location of every key and list item of a valid JSON text, and the keys that are given
    twice.

    The standard library's parser does not say where a value stood, and takes the last of two equal
    keys.
    """
    locations: Locations = {(): Location(1, f"{file}:1")}
    problems: list[Problem] = []
    tokens = _tokens(text)

    def read_value(path: KeyPath, opening: str) -> None:
        """Walk through one value, whose first token `opening` has been taken from `tokens`."""
        if len(path) > MAX_DEPTH:
            raise UserError(
                f"{file}: nested more than {MAX_DEPTH} deep; this cannot be a configuration file"
            )
        if opening not in ("{", "["):
            return
        first_line: dict[str | int, int] = {}
        index = 0
        for token, line in tokens:
            if token in ("}", "]"):
                return
            if token == ",":
                index += 1
                continue
            key = json.loads(token) if opening == "{" else index
            if key in first_line:
                reason = f"given twice, first on line {first_line[key]}: remove one of them"
                problems.append(((*path, key), reason))
            first_line.setdefault(key, line)
            locations[(*path, key)] = Location(line, f"{file}:{line}")
            if opening == "{":
                next(tokens)  # the colon
                token, _ = next(tokens)
            read_value((*path, key), token)

    first_token, _ = next(tokens)
    read_value((), first_token)
    return locations, problems


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Tokens of a valid JSON text, each with its line."""
    line = 1
    for match in TOKEN.finditer(text):
        if match.group() == "\n":
            line += 1
        else:
            yield match.group(), line


def location_of(path: KeyPath, locations: Locations) -> Location:
    """The location of a key, or of the innermost object around it that the file has."""
    while path not in locations:
        path = path[:-1]
    return locations[path]
