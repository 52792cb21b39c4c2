"""Pydantic's errors in the words of the JSON file: what is wrong, and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, get_args

from pydantic import ValidationError

from janus_pt.config.schema import Config
from janus_pt.config.section import Section
from janus_pt.utils.suggest import nearest

KeyPath = tuple[str | int, ...]
"""Where a value is: the keys and list indices that lead to it."""
Problem = tuple[KeyPath, str]
"""Where something is wrong, and what."""

MAX_REPORTED = 50
"""Problems reported at once: enough for any honest file, and a bound for any other."""

REQUIRED = "is required: add it"
EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "model_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
}
"""Pydantic's kind of error -> what it expected."""
BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
"""Pydantic's kind of error -> the bound's name in its context, and the words for it."""
LENGTHS = {"too_short": ("at least", "min_length"), "too_long": ("at most", "max_length")}
LITERALS = {
    "bool_type": r"true|false",
    "int_type": r"-?\d+",
    "float_type": r"-?\d+(\.\d+)?([eE][-+]?\d+)?",
}
"""Pydantic's kind of error -> strings that are the expected value but for their quotes."""

PydanticError = Mapping[str, Any]
"""One of `ValidationError.errors()`."""


def explain(error: ValidationError, root: type[Section] = Config) -> list[Problem]:
    """The problems behind the errors of a configuration, without those that only follow from
    others.

    Args:
        root: the section that the whole file was validated as.
    """
    return list(islice(_explain(error.errors(include_url=False), root), MAX_REPORTED))


def _explain(errors: list[Any], root: type[Section]) -> Iterator[Problem]:
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    # A misspelt key is reported as that, and not a second time as the lack of the key that was
    # meant. Looking for the nearest key is slow, so a file of very many unknown keys is not
    # searched to its end.
    meant = {(*path[:-1], _nearest_key(path, root)) for path in unknown[:MAX_REPORTED]}
    # Errors of an object repeat what its keys' errors say.
    parents = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    for error in errors:
        path = error["loc"]
        follows = path in parents or (error["type"] == "missing" and path in meant)
        if not follows:
            yield path, _reason(path, error, root)


def _reason(path: KeyPath, error: PydanticError, root: type[Section]) -> str:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path, root)
    if kind == "missing" and isinstance(path[-1], str):
        return REQUIRED
    if kind == "missing":
        return f"the list needs an item {path[-1]}, but has {len(value)}"
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind]}, got {_show(value)}{_hint(kind, value)}"
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        return f"must be {words} {error['ctx'][name]:g}, but is {_show(value)}"
    if kind == "literal_error":
        choices = error["ctx"]["expected"].replace("'", '"')
        return f"must be {choices}, but is {_show(value)}"
    if kind in LENGTHS:
        words, name = LENGTHS[kind]
        context = error["ctx"]
        return f"needs {words} {context[name]} items, but has {context['actual_length']}"
    return str(error["msg"])


def _hint(kind: str, value: Any) -> str:
    """How to turn the value into the one that was probably meant."""
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f": write {int(value)}"
    if kind == "string_type" and isinstance(value, int | float):
        return ": write it in quotes"
    if kind in LITERALS and isinstance(value, str) and re.fullmatch(LITERALS[kind], value):
        return ": write it without quotes"
    return ""


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown_key(path: KeyPath, root: type[Section]) -> str:
    key = str(path[-1])
    if homes := list(_sections_with(key, root)):
        return f"unknown key here; it belongs in {' or '.join(homes)}"
    if meant := _nearest_key(path, root):
        return f'unknown key; did you mean "{meant}"?'
    keys = ", ".join(section_at(path[:-1], root).model_fields)
    return f"unknown key; remove it or use one of: {keys}"


def _sections_with(key: str, section: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted names of every key called `key`."""
    for name, field in section.model_fields.items():
        if name == key:
            yield prefix + name
        yield from _sections_with(key, _section_of(field.annotation), f"{prefix}{name}.")


def _nearest_key(path: KeyPath, root: type[Section]) -> str | None:
    """The valid key that is spelt most like the last one of `path`."""
    return nearest(str(path[-1]), section_at(path[:-1], root).model_fields)


def section_at(path: KeyPath, root: type[Section] = Config) -> type[Section]:
    """The section that describes the object at `path`; one without keys where the object is free."""
    section = root
    for key in path:
        if isinstance(key, str):
            section = _section_of(section.model_fields[key].annotation)
    return section


def _section_of(annotation: Any) -> type[Section]:
    """The section in a field's type, which may be optional or a list; `Section` if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    arguments = [argument for argument in get_args(annotation) if argument is not ...]
    sections = [_section_of(argument) for argument in arguments]
    return next((section for section in sections if section is not Section), Section)
