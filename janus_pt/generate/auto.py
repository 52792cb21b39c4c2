"""Greedy search or speculation, which write the same: whichever has been faster for this model and batch size.

Speculation pays while a step waits for memory and not for arithmetic, and while drafts are kept: which
of the two is faster depends on machine, batch size and model, and is measured. Greedy search goes
first. The slower way is tried as soon as that can cost no more than `BUDGET` of all the time spent so
far, and again later, since inputs change.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

from janus_pt.generate.autoregressive import AutoregressiveOptions
from janus_pt.generate.hypotheses import DecodingOptions, Hypotheses
from janus_pt.generate.speculative import SpeculativeOptions
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.slots import Source

Way = Literal["greedy", "speculative"]
BUDGET = 0.02
"""Share of the time that may be lost by trying the slower way."""
FORGET = 0.9
"""Weight of what was seen before against a new batch."""
FIRST_GUESS = 2.0
"""Time of speculation over greedy search's, before it has been tried: a bad case."""


OTHER: dict[Way, Way] = {"greedy": "speculative", "speculative": "greedy"}


@dataclass
class Record:
    """How fast the two ways have been with batches of one size.

    Attributes:
        rates: seconds for each written token.
        spent: seconds of all batches; `lost` of them by trying the slower way.
        newest: seconds of the newest batch.
    """

    rates: dict[Way, float] = field(default_factory=dict)
    spent: float = 0.0
    lost: float = 0.0
    newest: float = 0.0

    def choose(self) -> Way:
        """The way for the next batch."""
        if "greedy" not in self.rates:
            return "greedy"
        greedy = self.rates["greedy"]
        ratio = self.rates.get("speculative", FIRST_GUESS * greedy) / greedy
        faster: Way = "speculative" if ratio < 1 else "greedy"
        # Of a batch like the newest one, decoded the slower way.
        expected_loss = (max(ratio, 1 / ratio) - 1) * self.newest
        is_affordable = self.lost + expected_loss <= BUDGET * self.spent
        return OTHER[faster] if is_affordable else faster

    def add(self, way: Way, seconds: float, tokens: int) -> None:
        """A batch of `tokens` written tokens took so many seconds."""
        rate = seconds / max(1, tokens)
        self.rates[way] = FORGET * self.rates.get(way, rate) + (1 - FORGET) * rate
        self.spent += seconds
        self.newest = seconds
        other = self.rates.get(OTHER[way], rate)
        self.lost += max(0.0, (rate - other) * tokens)


_records: WeakKeyDictionary[JanusTransformer, dict[int, Record]] = WeakKeyDictionary()


def record_of(model: JanusTransformer, rows: int) -> Record:
    """What is known of batches of about `rows` sources: sizes between two powers of two share a record."""
    return _records.setdefault(model, {}).setdefault(rows.bit_length(), Record())


class AutoOptions(DecodingOptions):
    """Greedy search's output, by greedy search or by speculation."""

    def decode(self, model: JanusTransformer, source: Source) -> Hypotheses:
        """Hypotheses of greedy search; of drafted and accepted tokens if it was speculation."""
        longest, shortest = self.max_length, self.min_length
        ways: dict[Way, DecodingOptions] = {
            "greedy": AutoregressiveOptions(max_length=longest, min_length=shortest),
            "speculative": SpeculativeOptions(max_length=longest, min_length=shortest),
        }
        record = record_of(model, len(source.tokens))
        way = record.choose()
        start = time.perf_counter()
        hypotheses = ways[way].decode(model, source)
        # The sum waits for the device: the time is of all that was computed.
        tokens = int(hypotheses.lengths.sum())
        record.add(way, time.perf_counter() - start, tokens)
        return hypotheses
