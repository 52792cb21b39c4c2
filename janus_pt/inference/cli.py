"""Command-line flags of the ways to decode, made of their options: `num_beams` becomes `--num-beams`."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from janus_pt.generate.modes import MODES

ONE_OUTPUT = "num_return_sequences"
"""Has no flag: text comes out as it goes in, one line for a line."""


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--mode` and a flag for every option of every mode; flags that are not given do not appear in the result."""
    parser.add_argument("--mode", choices=MODES, default="ar", help="how to decode; default: ar")
    group = parser.add_argument_group("options of the modes")
    fields: dict[str, tuple[FieldInfo, list[str]]] = {}
    for mode, kind in MODES.items():
        for name, field in kind.model_fields.items():
            fields.setdefault(name, (field, []))[1].append(mode)
    for name, (field, modes) in fields.items():
        if name == ONE_OUTPUT:
            continue
        told = "all modes" if len(modes) == len(MODES) else ", ".join(modes)
        text = f"{told}: {' '.join((field.description or '').replace('`', '').split())}"
        if field.default not in (None, False, PydanticUndefined):
            text += f" Default: {field.default}."
        group.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
            **_kind(field),
        )


def _kind(field: FieldInfo) -> dict[str, Any]:
    if field.annotation is bool:
        return {"action": "store_true"}
    if get_origin(field.annotation) is Literal:
        return {"choices": get_args(field.annotation)}
    return {"type": float if field.annotation is float else int}
