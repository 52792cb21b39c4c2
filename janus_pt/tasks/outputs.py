"""Outputs with their references, and the scores that a metric gives them."""

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
        # Strict: a metric of outputs that have lost their order would look like any other.
        return zip(self.predictions, self.references, strict=True)

    def map_texts(self, change: Callable[[str], str]) -> Outputs:
        """The same outputs with `change` applied to every prediction and every reference."""
        predictions = [change(prediction) for prediction in self.predictions]
        references = [[change(text) for text in texts] for texts in self.references]
        return Outputs(predictions, references)


@dataclass(frozen=True)
class Scores:
    """Values by name, 0 to 100, and a signature for each metric: how its values were computed."""

    values: dict[str, float]
    signatures: dict[str, str]


def pair_up(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str] | None = None,
) -> Outputs:
    """Outputs from the lines of files.

    Args:
        references: one list of lines for each reference file, one line for each prediction.
        sources: lines with an identical source become one output, with the references of all of
            them and the prediction of the last, as GLGE scores question generation.

    Raises:
        UserError: the numbers of lines differ, or there are no lines.
    """
    for number, lines in enumerate(references, start=1):
        _check_length(f"reference {number}", lines, predictions)
    if sources is not None:
        _check_length("the sources", sources, predictions)
    if not predictions:
        raise UserError("no lines to score")
    # From one list a file to one list a line.
    references_by_line = [list(texts) for texts in zip(*references, strict=True)]
    if sources is None:
        return Outputs(list(predictions), references_by_line)
    return _group_by_source(predictions, references_by_line, sources)


def _check_length(name: str, lines: Sequence[str], predictions: Sequence[str]) -> None:
    if len(lines) != len(predictions):
        raise UserError(
            f"{len(predictions)} predictions, but {name}: {len(lines)} lines; they go line by line"
        )


def _group_by_source(
    predictions: Sequence[str], references: Sequence[list[str]], sources: Sequence[str]
) -> Outputs:
    """One output for each different source, in the order in which the sources first occur."""
    prediction_of: dict[str, str] = {}
    references_of: dict[str, list[str]] = {}
    for source, prediction, texts in zip(sources, predictions, references, strict=True):
        key = source.strip()
        # GLGE's script overwrites: of several predictions for a source the last is scored.
        prediction_of[key] = prediction
        references_of.setdefault(key, []).extend(texts)
    return Outputs(list(prediction_of.values()), list(references_of.values()))
