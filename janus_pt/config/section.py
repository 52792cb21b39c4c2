"""What every part of the configuration is made of: its base class, and types with limits."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticKnownError

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Depth = Annotated[int, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0.0)]
TokenIds = Annotated[tuple[Count, ...], Field(strict=False)]


AUTO = 0
"""What `"auto"` is for the program, until it is replaced by a number."""


class TypeInWords(NamedTuple):
    """In a key's annotation: what the reference says of its type."""

    words: str


def _read_auto(value: Any) -> Any:
    if value == "auto":
        return AUTO
    if isinstance(value, int) and value < 1:
        raise PydanticKnownError("greater_than", {"gt": 0})
    return value


def _write_auto(value: int) -> int | str:
    return "auto" if value == AUTO else value


PositiveOrAuto = Annotated[
    int,
    BeforeValidator(_read_auto),
    PlainSerializer(_write_auto),
    TypeInWords('integer > 0 or `"auto"`'),
]


class Section(BaseModel):
    """A part of the configuration: frozen, strict about types, no unknown keys, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
