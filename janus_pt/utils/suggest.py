"""Suggestions for misspelt names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that is spelt most like `name`; None if none is near."""
    matches = get_close_matches(name, list(choices), n=1)
    return matches[0] if matches else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`did you mean NEAREST? `, with a space at its end, for a message; empty if no choice is near."""
    choice = nearest(name, choices)
    return f"did you mean {choice}? " if choice else ""
