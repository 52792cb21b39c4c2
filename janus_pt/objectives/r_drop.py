"""R-Drop (Wu et al. 2021): every sample is in a batch twice, with two dropouts, and the two
predictions shall agree."""

from __future__ import annotations

from collections.abc import Sequence

from janus_pt.objectives.fused_loss import Terms
from janus_pt.packing.batch import second_draw


def both_draws(terms: Terms) -> Terms:
    """The terms of both draws, and the divergence between the two draws of each stream."""
    second_streams = tuple(second_draw(stream) for stream in terms.streams)
    second_pairs = tuple((second_draw(a), second_draw(b)) for a, b in terms.pairs)
    # The two draws of a stream predict the same targets, so they can be compared row by row.
    between_draws = tuple(zip(terms.streams, second_streams, strict=True))
    second_suffixes = tuple(second_draw(stream) for stream in terms.suffix_streams)
    return Terms(
        streams=terms.streams + second_streams,
        pairs=terms.pairs + second_pairs + between_draws,
        label_smoothing=terms.label_smoothing,
        suffix_streams=terms.suffix_streams + second_suffixes,
    )


def weights_of_both_draws(weights: Sequence[float], num_streams: int, alpha: float) -> list[float]:
    """Weights in the order of `both_draws`' names, the length's last, from the weights of one draw
    in the same order.

    A term of one draw counts half, so that the two give their mean. The divergence between the
    draws of a stream counts `alpha / 2` times the stream's weight. The length's term is a mean
    already."""
    *terms, length = weights
    halves = [weight / 2 for weight in terms]
    streams, pairs = halves[:num_streams], halves[num_streams:]
    between_draws = [alpha * weight for weight in streams]
    return [*streams, *streams, *pairs, *pairs, *between_draws, length]
