"""What filters removed: counts by reason, and a few texts of each for a person to look at."""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from typing import Any

import xxhash
from datatrove.data import Document

from janus_pt.utils.files import make_folder, write_atomically

FOLDER = "removed"
CHARACTERS = 1000
"""Characters kept of a text."""


class Removed:
    """Takes the place of datatrove's exclusion writer, which keeps every removed text: as much again as the corpus.

    A sample is an even choice by the hash of a document's id, so it is the same in every run.
    """

    def __init__(self, work: str, filter_name: str, samples: int) -> None:
        self.folder = Path(work) / FOLDER / filter_name
        self.samples = samples
        self._clear()

    def _clear(self) -> None:
        self._rank = 0
        self._counts: dict[str, int] = {}
        self._kept: dict[str, list[tuple[int, dict[str, Any]]]] = {}

    def __enter__(self) -> Removed:
        self._clear()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # A task that failed is done again, and a generator that is closed early has not seen all.
        if kind is None and self._counts:
            make_folder(self.folder)
            kept = {
                reason: [entry for _, entry in sorted(entries, key=lambda pair: -pair[0])]
                for reason, entries in self._kept.items()
            }
            content = {"counts": self._counts, "samples": kept}
            write_atomically(self.folder / f"{self._rank:05d}.json", json.dumps(content))

    def write(self, document: Document, rank: int = 0) -> None:
        """Count a removed document, and perhaps keep it."""
        self._rank = rank
        reason = document.metadata.get("filter_reason", "removed")
        self._counts[reason] = self._counts.get(reason, 0) + 1
        if not self.samples:
            return
        entries = self._kept.setdefault(reason, [])
        # The largest hash is on top of the heap and leaves it first.
        priority = -xxhash.xxh64_intdigest(document.id)
        if len(entries) < self.samples or priority > entries[0][0]:
            entry: dict[str, Any] = {"id": document.id, "text": document.text[:CHARACTERS]}
            for key in ("target", "contaminated_by", "contaminated_words"):
                if key in document.metadata:
                    entry[key] = document.metadata[key]
            put = heapq.heappush if len(entries) < self.samples else heapq.heapreplace
            # Ids differ, so entries are never compared beyond their hash.
            put(entries, (priority, entry))
