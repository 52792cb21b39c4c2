"""Masking and text infilling (METHOD §4), as the authors' data sets do it, from a numpy generator."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.random import Generator

from janus_pt.packing.example import IntArray


def span_lengths(rng: Generator, budget: int, mean: float) -> IntArray:
    """Poisson lengths, zeros included, that add up to exactly `budget`; the last one is cut to fit."""
    drawn = rng.poisson(mean, budget)
    while (total := np.cumsum(drawn))[-1] < budget:
        drawn = np.concatenate((drawn, rng.poisson(mean, budget)))
    last = int(np.searchsorted(total, budget))
    lengths = drawn[: last + 1]
    lengths[last] -= total[last] - budget
    return lengths


def span_mask(rng: Generator, length: int, ratio: float, mean_span_length: float) -> IntArray:
    """Masked positions, sorted, of a target of `length` tokens with bos and eos: whole spans
    anywhere, then bos and eos restored. Spans overlap, and one that would cross the end covers one
    token, so about 55 % of a long target is masked at ratio 0.7; a short one may stay whole."""
    lengths = span_lengths(rng, ceil(ratio * length), mean_span_length)
    lengths = lengths[lengths > 0]
    starts = rng.permutation(length)[: len(lengths)]
    lengths = lengths[: len(starts)]
    ends = np.where(starts + lengths > length, starts + 1, starts + lengths)
    return _covered(starts, ends, length)


def uniform_mask(rng: Generator, length: int) -> IntArray:
    """Masked positions, sorted: their number uniform in 1 … n, then uniform places (CMLM); bos and
    eos never."""
    inner = length - 2
    if inner < 1:
        return np.empty(0, dtype=np.int64)
    return np.sort(rng.permutation(inner)[: rng.integers(1, inner + 1)]) + 1


def full_mask(length: int) -> IntArray:
    """All positions of a target of `length` tokens but bos and eos."""
    return np.arange(1, length - 1)


def some_of(rng: Generator, positions: IntArray, share: float) -> IntArray:
    """A share of the positions, rounded down, uniformly chosen; sorted."""
    return np.sort(rng.permutation(positions)[: int(share * len(positions))])


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
    symbol, as long as the encoder input stays within `max_length`."""
    length = len(target)
    inner = length - 2
    if inner < 1:
        return target, np.empty(0, dtype=np.int64)
    drawn = span_lengths(rng, ceil(ratio * inner), mean_span_length)
    lengths = drawn[drawn > 0]
    starts = rng.permutation(inner)[: len(lengths)] + 1
    lengths = lengths[: len(starts)]
    ends = np.minimum(starts + lengths, length - 1)
    readable = rng.random(len(starts)) < visible_share
    source = _replace_spans(target, mask_token_id, starts, ends, readable)
    insertions = min(int(np.count_nonzero(drawn == 0)), max_length - len(source))
    source = _insert(rng, source, mask_token_id, max(0, insertions))
    if rng.random() < rotate_probability and len(source) > 2:
        source = np.concatenate(
            (source[:1], np.roll(source[1:-1], -rng.integers(1, len(source) - 1)), source[-1:])
        )
    return source, _covered(starts, ends, length)


def _covered(starts: IntArray, ends: IntArray, length: int) -> IntArray:
    """Positions inside any span, without the first and the last."""
    edges = np.zeros(length + 1, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    positions = np.flatnonzero(np.cumsum(edges[:length]) > 0)
    return positions[(positions > 0) & (positions < length - 1)]


def _replace_spans(
    target: IntArray, mask_token_id: int, starts: IntArray, ends: IntArray, readable: IntArray
) -> IntArray:
    """Spans that are not readable become one mask symbol. Where spans overlap, they are written
    offset by offset,
    readable ones last: the last write decides whether a token shows, but what was deleted stays
    deleted."""
    source = target.copy()
    deleted = np.zeros(len(target), dtype=bool)
    for offset in range(int((ends - starts).max(initial=0))):
        places = starts + offset
        inside = places < ends
        hidden = places[inside & ~readable]
        if offset == 0:
            source[hidden] = mask_token_id
        else:
            deleted[hidden] = True
        shown = places[inside & readable]
        source[shown] = target[shown]
    return source[~deleted]


def _insert(rng: Generator, source: IntArray, mask_token_id: int, count: int) -> IntArray:
    """`count` mask symbols at uniform places strictly inside."""
    if count == 0:
        return source
    result = np.full(len(source) + count, mask_token_id, dtype=source.dtype)
    keep = np.ones(len(result), dtype=bool)
    keep[rng.permutation(len(result) - 2)[:count] + 1] = False
    result[keep] = source
    return result
