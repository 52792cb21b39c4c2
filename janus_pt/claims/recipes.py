"""Comparisons that are worth repeating: `janus-pt claims --recipe NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A task, a scale, and the systems that are compared.

    Attributes:
        task: row of janus_pt/tasks/table.py.
        scale: row of `plan.SCALES`.
        prep: command of `janus-pt prep` that makes the data where --data is not given; None: they
            are of a made-up language.
        systems: name, then `dotted.key=value` each, as --system takes them.
    """

    task: str
    scale: str
    prep: str | None
    systems: tuple[tuple[str, ...], ...]


# Without BANG's two objectives, which --system adds.
DEFAULT_RECIPE = Recipe(
    task="nmt",
    scale="tiny",
    prep=None,
    systems=(("ar",), ("cmlm",), ("joint",), ("cmlmc",), ("janus",)),
)


LIGHT = ("objective.kl_ar_aux=0.3", "objective.kl_aux_nar=0.3", "objective.kl_ar_nar=0.1")
"""A tenth of the paper's divergences."""

RECIPES: Mapping[str, Recipe] = {
    "g2p": Recipe(
        task="g2p/cmudict",
        scale="g2p",
        prep="cmudict",
        systems=(
            ("ar",),
            ("ar-rdrop", "objective.name=ar", "objective.r_drop=1.0"),
            ("joint",),
            ("janus",),
            ("janus-light", "objective.name=janus", *LIGHT),
            ("cmlm",),
            ("cmlmc",),
            ("bang",),
            ("bang-nar", "objective.name=bang_nar"),
        ),
    ),
}
