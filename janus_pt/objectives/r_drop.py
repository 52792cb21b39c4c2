"""R-Drop (Wu et al. 2021): every sample is in a batch twice, with two dropouts, and the two
predictions shall agree."""

from __future__ import annotations

from collections.abc import Sequence

from janus_pt.objectives.fused_loss import Terms
from janus_pt.packing.batch import second_draw


def both_draws(terms: Terms) -> Terms:
    """The terms of both draws, and the divergence between the two draws of each stream."""
    streams = (*terms.streams, *map(second_draw, terms.streams))
    second_pairs = tuple((second_draw(a), second_draw(b)) for a, b in terms.pairs)
    between_draws = tuple((stream, second_draw(stream)) for stream in terms.streams)
    pairs = terms.pairs + second_pairs + between_draws
    suffixes = (*terms.suffix_streams, *map(second_draw, terms.suffix_streams))
    return Terms(streams, pairs, terms.label_smoothing, suffixes)


def weights_of_both_draws(weights: Sequence[float], num_streams: int, alpha: float) -> list[float]:
    """Weights in the order of `both_draws`' names, the length's last, from the weights of one draw in the
    same order.

    A term of one draw counts half, so that the two give their mean. The divergence between the
    draws of a stream counts `alpha / 2` times the stream's weight. The length's term is a mean
    already."""
    *terms, length = weights
    halves = [weight / 2 for weight in terms]
    streams, pairs = halves[:num_streams], halves[num_streams:]
    between_draws = [alpha * weight for weight in streams]
    return [*streams, *streams, *pairs, *pairs, *between_draws, length]
