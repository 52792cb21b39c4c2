"""Masking and text infilling (METHOD §4), as the authors' data sets do it, from a numpy generator."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.random import Generator

from janus_pt.packing.example import BOUNDARY_TOKENS, IntArray


def span_lengths(rng: Generator, budget: int, mean: float) -> IntArray:
    """Poisson lengths, zeros included, that add up to exactly `budget`; the last is cut to fit."""
    drawn = rng.poisson(mean, budget)
    total = np.cumsum(drawn)
    # `budget` lengths are nearly always enough; with a small mean more may be needed.
    while total[-1] < budget:
        drawn = np.concatenate((drawn, rng.poisson(mean, budget)))
        total = np.cumsum(drawn)
    last = int(np.searchsorted(total, budget))
    lengths = drawn[: last + 1]
    lengths[last] -= total[last] - budget
    return lengths


def span_mask(rng: Generator, length: int, ratio: float, mean_span_length: float) -> IntArray:
    """Masked positions, sorted, of a target of `length` tokens with bos and eos: whole spans.

    Spans may begin anywhere and overlap; bos and eos are restored. About 55 % of a long target is
    masked at ratio 0.7; a short one may stay whole.
    """
    lengths = span_lengths(rng, ceil(ratio * length), mean_span_length)
    # Only infilling has a use for spans of no token.
    lengths = lengths[lengths > 0]
    starts = rng.permutation(length)[: len(lengths)]
    # There may be more spans than places to begin.
    lengths = lengths[: len(starts)]
    # A span that would cross the end covers one token, as in the authors' code.
    ends = np.where(starts + lengths > length, starts + 1, starts + lengths)
    return _covered(starts, ends, length)


def uniform_mask(rng: Generator, length: int) -> IntArray:
    """Masked positions, sorted: their number uniform in 1 … n, then uniform positions (CMLM).

    bos and eos are never masked.
    """
    inner = length - BOUNDARY_TOKENS
    if inner < 1:
        return np.empty(0, dtype=np.int64)
    order = rng.permutation(inner)
    count = rng.integers(1, inner + 1)
    # The first token behind bos is at position 1.
    return np.sort(order[:count]) + 1


def full_mask(length: int) -> IntArray:
    """All positions of a target of `length` tokens but bos and eos."""
    return np.arange(1, length - 1)


def suffix_mask(rng: Generator, length: int) -> IntArray:
    """All positions behind a cut of a target of `length` tokens but eos, sorted: 0 to n - 1 of its n tokens are kept,
    each number as often."""
    inner = length - BOUNDARY_TOKENS
    if inner < 1:
        return np.empty(0, dtype=np.int64)
    kept = int(rng.integers(inner))
    # The first token behind bos is at position 1.
    return np.arange(1 + kept, length - 1)


def some_of(rng: Generator, positions: IntArray, share: float) -> IntArray:
    """A share of the positions, rounded down, uniformly chosen; sorted."""
    count = int(share * len(positions))
    return np.sort(rng.permutation(positions)[:count])


def infill(
    rng: Generator,
    target: IntArray,
    mask_token_id: int,
    ratio: float,
    mean_span_length: float,
    visible_share: float,
    rotate_probability: float,
    max_length: int,
) -> tuple[IntArray, IntArray]:
    """Encoder input and sorted masked positions of the decoder, from `target` with bos and eos.

    Spans are masked for the decoder; each is left readable in the encoder input with probability
    `visible_share`, else replaced by one mask symbol there. A span of length zero inserts a mask
    symbol, as long as the encoder input stays within `max_length`.
    """
    length = len(target)
    inner = length - BOUNDARY_TOKENS
    if inner < 1:
        return target, np.empty(0, dtype=np.int64)
    drawn = span_lengths(rng, ceil(ratio * inner), mean_span_length)
    lengths = drawn[drawn > 0]
    starts = rng.permutation(inner)[: len(lengths)] + 1
    # There may be more spans than places to begin.
    lengths = lengths[: len(starts)]
    # Spans end before eos.
    ends = np.minimum(starts + lengths, length - 1)
    is_readable = rng.random(len(starts)) < visible_share
    source = _replace_spans(target, mask_token_id, starts, ends, is_readable)
    empty_spans = int(np.count_nonzero(drawn == 0))
    room = max(0, max_length - len(source))
    source = _insert(rng, source, mask_token_id, min(empty_spans, room))
    # Drawn in any case: what follows in the sample's noise must not depend on its length.
    is_rotated = rng.random() < rotate_probability
    if is_rotated and len(source) > BOUNDARY_TOKENS:
        distance = rng.integers(1, len(source) - 1)
        rotated = np.roll(source[1:-1], -distance)
        source = np.concatenate((source[:1], rotated, source[-1:]))
    return source, _covered(starts, ends, length)


def _covered(starts: IntArray, ends: IntArray, length: int) -> IntArray:
    """Positions inside any span, without the first and the last."""
    # +1 where a span begins, -1 where one ends: the running sum counts the spans over a position.
    edges = np.zeros(length + 1, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    positions = np.flatnonzero(np.cumsum(edges[:length]) > 0)
    return positions[(positions > 0) & (positions < length - 1)]


def _replace_spans(
    target: IntArray, mask_token_id: int, starts: IntArray, ends: IntArray, is_readable: IntArray
) -> IntArray:
    """Spans that are not readable become one mask symbol each.

    Where spans overlap, they are written offset by offset, readable ones last: the last write
    decides whether a token shows, but what was deleted stays deleted. So does the authors' code.
    """
    source = target.copy()
    is_deleted = np.zeros(len(target), dtype=bool)
    longest = int((ends - starts).max(initial=0))
    for offset in range(longest):
        positions = starts + offset
        is_inside = positions < ends
        hidden = positions[is_inside & ~is_readable]
        if offset == 0:
            # The first token of a span makes room for its one mask symbol.
            source[hidden] = mask_token_id
        else:
            is_deleted[hidden] = True
        readable = positions[is_inside & is_readable]
        source[readable] = target[readable]
    return source[~is_deleted]


def _insert(rng: Generator, source: IntArray, mask_token_id: int, count: int) -> IntArray:
    """`count` mask symbols at uniform positions strictly inside."""
    # A permutation would be drawn for nothing, and change all that is drawn after it.
    if count == 0:
        return source
    result = np.full(len(source) + count, mask_token_id, dtype=source.dtype)
    is_token = np.ones(len(result), dtype=bool)
    masks = rng.permutation(len(result) - BOUNDARY_TOKENS)[:count] + 1
    is_token[masks] = False
    result[is_token] = source
    return result
