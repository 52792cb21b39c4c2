"""How much a forward pass reads (`Workload`); blocks derive their cost from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Tokens and slots that one or more forward passes compute, padding not counted.

    The four counts are totals over all samples. `predicted_slots` pass the output projection, and
    are all that the last decoder layer computes. The two lengths are means: of the source tokens
    that a source token or slot reads, and of the content slots that a slot reads.
    """

    source_tokens: float
    content_slots: float
    query_slots: float
    predicted_slots: float
    source_length: float = 0.0
    content_length: float = 0.0

    @property
    def slots(self) -> float:
        """All decoder slots."""
        return self.content_slots + self.query_slots
