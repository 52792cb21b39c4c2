"""What every part of the configuration is made of: its base class, and types with limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Depth = Annotated[int, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0.0)]
TokenIds = Annotated[tuple[Count, ...], Field(strict=False)]


class Section(BaseModel):
    """A part of the configuration: frozen, strict about types, no unknown keys, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
