"""Outputs of a comparison, of which the page shows some side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from janus_pt.claims.data import Data
from janus_pt.claims.decode import read_predictions
from janus_pt.claims.plan import Cell
from janus_pt.claims.ways import GREEDY

SAMPLES = 12
SHOWN_WAYS = (GREEDY, "NAR 4 passes", "NAR 1 pass, to eos", "rerank")
"""Ways whose outputs are shown; others write nearly the same."""


def read_samples(cells: Sequence[Cell], data: Data) -> list[dict[str, Any]]:
    """Some sources, spread over the test set, with their references and all systems' outputs.

    Args:
        cells: of one seed.
    """
    test = data.test
    references: dict[str, list[str]] = {}
    for source, target in zip(test.sources, test.targets, strict=True):
        references.setdefault(source, []).append(target)
    texts = {}
    for cell in cells:
        for way in cell.system.ways:
            if way in SHOWN_WAYS:
                texts[f"{cell.system.name}, {way}"] = read_predictions(cell.folder, way)
    step = max(1, len(test.sources) // SAMPLES)
    samples = []
    for index in range(0, len(test.sources), step)[:SAMPLES]:
        source = test.sources[index]
        outputs = {name: lines[index] for name, lines in texts.items()}
        # One reference for each example; where a task groups identical sources, all of theirs.
        own = references[source] if data.row.group_by_source else [test.targets[index]]
        samples.append({"source": source, "references": own, "outputs": outputs})
    return samples
