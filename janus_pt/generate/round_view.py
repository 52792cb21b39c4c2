"""What the host knows of speculative decoding between two rounds."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class RoundView:
    """State of each row that the next round's shapes depend on; names as in the rows of `speculative.py`."""

    ended: list[int]
    redraft: list[int]
    kept: list[int]
    predicted: list[int]
    block_size: list[int]

    def block_width(self, block_size: int | None) -> int:
        """Drafted tokens of the longest block of the next round; `block_size` replaces the rows' own."""
        limits = self.block_size if block_size is None else [block_size] * len(self.kept)
        rows = zip(self.predicted, self.kept, limits, strict=True)
        return max(min(max(predicted - kept, 0), limit) for predicted, kept, limit in rows)

    def going(self) -> RoundView:
        """The rows that have not ended."""
        rows = [row for row, ended in enumerate(self.ended) if not ended]
        lists = (getattr(self, field.name) for field in fields(self))
        return RoundView(*([values[row] for row in rows] for values in lists))
