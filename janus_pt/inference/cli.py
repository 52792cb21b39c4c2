"""Command-line flags of the ways to decode, made of their options: `num_beams` is `--num-beams`."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from janus_pt.generate.modes import MODES

NUM_OUTPUTS = "num_return_sequences"
"""The option that has no flag: a line in gives one line out."""


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--mode` and a flag for every option of every mode.

    Flags that are not given do not appear in the result: the modes' own defaults hold, and an
    option that a mode does not have is an error only if it is given.
    """
    parser.add_argument("--mode", choices=MODES, default="ar", help="how to decode; default: ar")
    group = parser.add_argument_group("options of the modes")
    for name, (field, modes) in options_of_modes().items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=_help(field, modes),
            **_kind(field),
        )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the modes that were given on the command line, by name."""
    return {name: value for name, value in vars(arguments).items() if name in options_of_modes()}


def options_of_modes() -> dict[str, tuple[FieldInfo, list[str]]]:
    """Options that have a flag; each with its field and the modes that have it."""
    options: dict[str, tuple[FieldInfo, list[str]]] = {}
    for mode, kind in MODES.items():
        for name, field in kind.model_fields.items():
            if name == NUM_OUTPUTS:
                continue
            # An option of several modes has the same meaning in all: the first one's text serves.
            _, modes = options.setdefault(name, (field, []))
            modes.append(mode)
    return options


def _help(field: FieldInfo, modes: list[str]) -> str:
    described = " ".join((field.description or "").replace("`", "").split())
    text = f"{'all modes' if len(modes) == len(MODES) else ', '.join(modes)}: {described}"
    # None and False are defaults that the description explains.
    if field.default not in (None, False, PydanticUndefined):
        text += f" Default: {field.default}."
    # argparse formats help texts with %.
    return text.replace("%", "%%")


def _kind(field: FieldInfo) -> dict[str, Any]:
    """Arguments of `add_argument` that an option's type asks for."""
    if field.annotation is bool:
        return {"action": "store_true"}
    if get_origin(field.annotation) is Literal:
        return {"choices": get_args(field.annotation)}
    return {"type": float if field.annotation is float else int}
