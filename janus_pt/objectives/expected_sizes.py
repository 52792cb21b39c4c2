"""The expected size of a batch: the means of what `masking.py` and the objectives make, as
formulas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp

from janus_pt.config.schema import AUTO, DataConfig, MaskingConfig, ModelConfig, ObjectiveConfig
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.example import BOUNDARY_TOKENS


@dataclass(frozen=True)
class SampleSizes:
    """Mean sizes of one sample whose target has `target` tokens with bos and eos, `masked` of them
    masked.

    content, queries: slots of the decoder; predicted: slots that pass the output projection, over
    all streams;
    pairs: of a slot and a content slot of its side, which attention computes."""

    target: int
    source: float
    masked: float
    content: float
    queries: float
    predicted: float
    pairs: float

    @property
    def slots(self) -> float:
        """All slots of the decoder."""
        return self.content + self.queries


def sample_sizes(model: ModelConfig, objective: ObjectiveConfig, target: int) -> SampleSizes:
    """Mean sizes of a sample with a target of `target` tokens; a given source is taken to be as
    long."""
    source, masked = _noise(objective.masking, target)
    # bos and eos are never masked. Behind a cut there are 1 to n of n tokens.
    inner = target - BOUNDARY_TOKENS
    full, suffix = objective.masking.full_share, objective.masking.suffix_share
    masked = (1 - full - suffix) * masked + full * inner + suffix * (inner + 1) / 2
    slots = OBJECTIVES[objective.name].expected_slots(target, masked, model, objective)
    # Slots meet contents of their own segment only.
    causal_pairs = slots.causal_content * (slots.causal_content + slots.causal_queries)
    masked_pairs = slots.masked_content * (slots.masked_content + slots.masked_queries)
    return SampleSizes(
        target,
        source,
        masked,
        content=slots.causal_content + slots.masked_content,
        queries=slots.causal_queries + slots.masked_queries,
        predicted=slots.predicted,
        pairs=causal_pairs + masked_pairs,
    )


def _noise(masking: MaskingConfig, target: int) -> tuple[float, float]:
    """Mean tokens of the source, and mean masked tokens of the target."""
    if masking.kind == "uniform":
        return target, (target - 1) / 2
    masked = _covered(masking, 1.0)
    if masking.kind == "span":
        return target, target * masked
    hidden = 1 - masking.visible_share
    spans = masking.ratio / masking.mean_span_length
    empty = exp(-masking.mean_span_length)
    # Each hidden span becomes one mask symbol, each empty one inserts one.
    source = 1 - _covered(masking, hidden) + spans * (hidden * (1 - empty) + empty)
    return min(target * source, target), target * masked


def _covered(masking: MaskingConfig, share: float) -> float:
    """Share of the tokens inside any of `share` of the spans.

    A token is outside if, for every offset j, the token j before it does not begin a span longer
    than j."""
    outside, density = 1.0, share * masking.ratio / masking.mean_span_length
    for longer in _tail(masking.mean_span_length):
        outside *= 1 - min(1.0, density * longer)
    return 1 - outside


def _tail(mean: float) -> Iterator[float]:
    """P(length > j) of a Poisson variable for j = 0, 1, … until it is negligible."""
    term, left, count = exp(-mean), 1.0, 0
    while (left := left - term) > 1e-6:
        yield left
        count += 1
        term *= mean / count


def samples_of(size: int, unit: str, target: int) -> float:
    """Samples of `target` tokens in a batch of `size`, in the unit of `data.batch_unit`."""
    return size / target if unit == "tokens" else float(size)


def longest_target(data: DataConfig, max_positions: int) -> int:
    """The longest target, with bos and eos, that a micro-batch and the position table can hold."""
    holds_tokens = data.batch_unit == "tokens" and data.micro_batch_size != AUTO
    return min(max_positions, data.micro_batch_size) if holds_tokens else max_positions
