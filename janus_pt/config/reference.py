"""The configuration reference, made from the schema: every key with its type, default and meaning.

python -m janus_pt.config.reference > docs/reference/configuration.md
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from janus_pt.config.objectives import OBJECTIVES
from janus_pt.config.schema import KNOWN_OBJECTIVE, Config, ObjectiveConfig
from janus_pt.config.section import Section, TypeInWords

HEAD = """# Configuration

One JSON file describes a run. Each table below is a section of it; `--set SECTION.KEY=VALUE` changes
one value. Made from `janus_pt/config/schema.py` by `python -m janus_pt.config.reference`; a test
compares the two.
"""

BOUNDS = {
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Lt: ("lt", "<"),
    annotated_types.Le: ("le", "≤"),
}


def reference(root: type[Section] = Config, head: str = HEAD) -> str:
    """The whole page as Markdown.

    Args:
        root: the section that a whole file holds.
        head: what the page begins with.
    """
    parts = [head, *_section("", root)]
    return "\n".join(parts).rstrip() + "\n"


def _section(path: str, section: type[Section]) -> Iterator[str]:
    """The heading and table of one section, then of the sections inside it."""
    if path:
        yield f"## `{path}`\n"
        yield inspect.cleandoc(section.__doc__ or "") + "\n"
    rows = list(_rows(section))
    if rows:
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""
    for name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            yield from _section(f"{path}.{name}" if path else name, inner)


def _rows(section: type[Section]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        # The whole configuration lists its sections as headings, not as keys.
        if section is Config and section_of(field.annotation):
            continue
        meaning = re.sub(r"\s+", " ", field.description or "")
        by_recipe = section is ObjectiveConfig and field.is_required()
        default = "by recipe" if by_recipe else _default(field)
        cells = (f"`{name}`", _type(field), default, meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, alone, as an option, or as the items of a tuple."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return annotation
    sections = (section_of(inner) for inner in get_args(annotation))
    return next((section for section in sections if section), None)


def _type(field: FieldInfo) -> str:
    """The type in words, with the bounds of a number."""
    if KNOWN_OBJECTIVE in field.metadata:
        return _choices(OBJECTIVES)
    for item in field.metadata:
        if isinstance(item, TypeInWords):
            return item.words
    return _type_name(field.annotation) + _bounds(field.metadata)


def _choices(values: Iterable[Any]) -> str:
    return ", ".join(f"`{json.dumps(value)}`" for value in values)


def _bounds(metadata: list[Any]) -> str:
    bounds = []
    for constraint in metadata:
        for kind, (attribute, sign) in BOUNDS.items():
            if isinstance(constraint, kind):
                bounds.append(f"{sign} {getattr(constraint, attribute)}")
        if isinstance(constraint, FieldInfo):
            bounds.append(_bounds(constraint.metadata).removeprefix(" "))
    text = ", ".join(bound for bound in bounds if bound)
    return f" {text}" if text else ""


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0]) + _bounds(list(arguments[1:]))
    if origin is Literal:
        return _choices(arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(inner) for inner in arguments)
    if origin is tuple:
        inner = [_type_name(item) for item in arguments if item is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    if origin is dict or annotation is dict:
        return "object"
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return "object"
    names = {
        int: "integer",
        float: "number",
        str: "string",
        bool: "true or false",
        NoneType: "null",
    }
    return names.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return ""
    if isinstance(default, Section):
        return "see there"
    return f"`{json.dumps(default)}`"


if __name__ == "__main__":
    print(reference(), end="")
