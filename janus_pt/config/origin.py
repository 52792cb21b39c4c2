"""What is known of where a model comes from; the model card of an export says it (`README.md`).

In the card's front matter (YAML between two lines of `---`) it is the value of the key `janus_pt`,
in JSON, which is YAML, too, and needs no parser that could be told to make objects.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, ValidationError

from janus_pt.config.section import Section

CARD = "README.md"
MAX_CARD_BYTES = 1 << 20
FENCE, KEY = "---\n", "janus_pt"


class CorpusOrigin(Section):
    """A corpus that a model was trained on; the counts are unknown where it is not there any more."""

    name: str
    fingerprint: str | None = None
    samples: int | None = None
    tokens: int | None = None


class Origin(Section):
    """Where a model comes from; everything may be unknown."""

    objective: str | None = None
    """What it was trained on last."""
    steps: list[int] = Field(default_factory=list)
    """Updates of that training; several if it is the mean of that many checkpoints."""
    corpora: list[CorpusOrigin] = Field(default_factory=list)
    losses: dict[str, float] = Field(default_factory=dict)
    """The last ones of the training by name."""
    evaluation: dict[str, float] = Field(default_factory=dict)
    """Losses and metrics of the last validation by name."""
    init_from_sha256: str | None = None
    """The weights that the training began with."""
    base_model: str | None = None
    """Name of the other project's model that it, or the model it began with, was converted from."""
    license: str | None = None
    """Of that model, as Hugging Face abbreviates it."""


UNKNOWN_ORIGIN = Origin()
LICENSE = re.compile(r"^license: *[\"']?([\w.+-]+)[\"']? *$", re.MULTILINE)


def read_origin(folder: str | Path) -> Origin:
    """What the card of an export says; nothing if there is none, or one that somebody has changed."""
    _, _, known = _front_matter(folder).partition(f"\n{KEY}: ")
    try:
        return Origin.model_validate_json(known.partition("\n")[0])
    # A card is for people: a model is no worse for a wrong one.
    except ValidationError:
        return UNKNOWN_ORIGIN


def base_origin(folder: str | Path) -> Origin:
    """What still holds of an export's origin for a model that began with it."""
    origin = read_origin(folder)
    return Origin(base_model=origin.base_model, license=origin.license)


def read_license(folder: str | Path) -> str | None:
    """The licence that the card of another project's model names, if it has one."""
    found = LICENSE.search(_front_matter(folder))
    return found[1] if found else None


def _front_matter(folder: str | Path) -> str:
    """What stands between the fences of a card; "" if there is no such thing."""
    path = Path(folder, CARD)
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            return ""
        before, front_matter, _ = path.read_text("utf-8").split(FENCE, 2)
    except (OSError, ValueError):
        return ""
    return "" if before else f"\n{front_matter}"
