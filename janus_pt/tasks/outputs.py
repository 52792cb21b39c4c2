"""Outputs with their references, and what a metric makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from janus_pt.utils.errors import UserError


@dataclass(frozen=True)
class Outputs:
    """Predictions, each with one or more references. Iterating gives (prediction, references)."""

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[tuple[str, Sequence[str]]]:
        return zip(self.predictions, self.references, strict=True)

    def mapped(self, change: Callable[[str], str]) -> Outputs:
        """The same with every text changed."""
        return Outputs(
            [change(p) for p in self.predictions],
            [[change(r) for r in rs] for rs in self.references],
        )


@dataclass(frozen=True)
class Metrics:
    """Values by name, 0 to 100, and how they were computed."""

    values: dict[str, float]
    signatures: dict[str, str]


def pair_up(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str] | None = None,
) -> Outputs:
    """Outputs from files' lines: `references` is a list of files, one line for each prediction.

    With `sources`, lines with an identical source are one output: all their references, and the last prediction, as
    GLGE's question generation is scored.

    Raises:
        UserError: the numbers of lines differ, or there are none.
    """
    for name, lines in (
        *((f"reference {n}", r) for n, r in enumerate(references, 1)),
        ("the sources", sources),
    ):
        if lines is not None and len(lines) != len(predictions):
            raise UserError(
                f"{len(predictions)} predictions, but {name}: {len(lines)} lines; they go line by line"
            )
    if not predictions:
        raise UserError("no lines to score")
    by_output = [list(lines) for lines in zip(*references, strict=True)]
    if sources is None:
        return Outputs(list(predictions), by_output)
    grouped: dict[str, tuple[str, list[str]]] = {}
    for source, prediction, own in zip(sources, predictions, by_output, strict=True):
        _, earlier = grouped.get(source.strip(), ("", []))
        grouped[source.strip()] = (prediction, earlier + own)
    return Outputs(
        [prediction for prediction, _ in grouped.values()], [own for _, own in grouped.values()]
    )
