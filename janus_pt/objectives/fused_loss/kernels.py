"""Triton kernels of the losses: one pass over a chunk's logits forward, one for their gradient.

A kernel is compiled for the streams and pairs that it is given: these are constants, and what belongs
to each is a tuple of vectors, in registers. A row is a target token, with the logits of all its
streams behind each other: `[rows, streams, row stride]`, of which the first `vocab_rows` columns are
this rank's tokens.

What is summed over the vocabulary for a row lies in `sums [rows, 3 S + 2 P]`, with S streams and P
pairs: Σ exp(z - highest) and the target's z and Σ z of each stream; for each pair
Σ exp(z_a - highest_a) d and Σ exp(z_b - highest_b) d of d = z_a - z_b. Over the first of these, the
last are E_{p_a}[d] and E_{p_b}[d]. They are sums of differences, which stay exact where two streams
nearly agree.

A row of target -1 is padding: it is in no term, and its gradient is zero.

The first token is not specialised on, nor is the number of rows: these differ from rank to rank and
from chunk to chunk, and nothing is gained by compiling for each.
"""

# Triton's language is not Python's: its tuples grow, and what it compiles has no types here.
# mypy: ignore-errors

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
"""Stands for the logit of a column that is none. Finite: the difference of two is 0, not NaN."""
VECTOR = tl.constexpr(4)
"""Columns that a thread takes at once: 16 bytes of float32, the widest load that there is."""


@triton.jit
def _filled(COUNT: tl.constexpr, LANES: tl.constexpr, value: tl.constexpr, dtype: tl.constexpr):
    """`COUNT` vectors of one value."""
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors += (tl.full((LANES,), value, dtype),)
    return vectors


@triton.jit(do_not_specialize=["first_token"])
def sum_rows(
    logits,
    targets,
    highest,
    sums,
    vocab_rows,
    row_stride,
    first_token,
    STREAMS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    LANES: tl.constexpr,
):
    """A program is a row. Each thread keeps a maximum and sums of its own columns, relative to that
    maximum: the loop needs no exchange between threads, which comes once at the end."""
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = logits.dtype.element_ty
    first = logits + row * STREAMS * row_stride
    column = tl.arange(0, LANES * VECTOR)
    most = _filled(STREAMS, LANES, LOWEST, dtype)
    total = _filled(STREAMS, LANES, 0.0, dtype)
    plain = _filled(STREAMS, LANES, 0.0, dtype)
    over_a = _filled(len(FIRST), LANES, 0.0, dtype)
    over_b = _filled(len(FIRST), LANES, 0.0, dtype)
    for start in range(0, vocab_rows, LANES * VECTOR):
        here = start + column
        logit = ()
        exponential = ()
        factor = ()
        last_most, last_total, last_plain = most, total, plain
        most, total, plain = (), (), ()
        for s in tl.static_range(STREAMS):
            # Rows are stored in multiples of a vector: bounded by them, loads stay whole vectors.
            z = tl.load(first + s * row_stride + here, mask=here < row_stride, other=0.0)
            inside = here < vocab_rows
            plain += (last_plain[s] + tl.sum(tl.where(inside, z, 0.0).reshape(LANES, VECTOR), 1),)
            z = tl.where(inside, z, LOWEST).reshape(LANES, VECTOR)
            higher = tl.maximum(last_most[s], tl.max(z, 1))
            e = tl.exp(z - higher[:, None])
            scale = tl.exp(last_most[s] - higher)
            most += (higher,)
            total += (last_total[s] * scale + tl.sum(e, 1),)
            logit += (z,)
            exponential += (e,)
            factor += (scale,)
        last_a, last_b = over_a, over_b
        over_a, over_b = (), ()
        for pair in tl.static_range(len(FIRST)):
            d = logit[FIRST[pair]] - logit[SECOND[pair]]
            e = exponential[FIRST[pair]]
            over_a += (last_a[pair] * factor[FIRST[pair]] + tl.sum(e * d, 1),)
            e = exponential[SECOND[pair]]
            over_b += (last_b[pair] * factor[SECOND[pair]] + tl.sum(e * d, 1),)
    out = sums + row * (3 * STREAMS + 2 * len(FIRST))
    scales = ()
    for s in tl.static_range(STREAMS):
        highest_of_all = tl.max(most[s], 0)
        scale = tl.exp(most[s] - highest_of_all)
        tl.store(highest + row * STREAMS + s, highest_of_all)
        tl.store(out + s, tl.sum(total[s] * scale, 0))
        tl.store(out + 2 * STREAMS + s, tl.sum(plain[s], 0))
        scales += (scale,)
    for pair in tl.static_range(len(FIRST)):
        over = out + 3 * STREAMS + 2 * pair
        tl.store(over, tl.sum(over_a[pair] * scales[FIRST[pair]], 0))
        tl.store(over + 1, tl.sum(over_b[pair] * scales[SECOND[pair]], 0))
    target = tl.load(targets + row) - first_token
    # Another rank's target counts 0 here.
    is_local = (target >= 0) & (target < vocab_rows)
    for s in tl.static_range(STREAMS):
        z = tl.load(first + s * row_stride + target, mask=is_local, other=0.0)
        tl.store(out + STREAMS + s, z)


@triton.jit(do_not_specialize=["rows"])
def to_shared_highest(
    sums,
    own_highest,
    highest,
    rows,
    STREAMS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program is a block of rows, a thread a row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    first = sums + row * (3 * STREAMS + 2 * len(FIRST))
    scales = ()
    for s in tl.static_range(STREAMS):
        own = tl.load(own_highest + row * STREAMS + s, mask=inside, other=0.0)
        scale = tl.exp(own - tl.load(highest + row * STREAMS + s, mask=inside, other=0.0))
        total = tl.load(first + s, mask=inside, other=0.0)
        tl.store(first + s, total * scale, mask=inside)
        scales += (scale,)
    for pair in tl.static_range(len(FIRST)):
        over = first + 3 * STREAMS + 2 * pair
        over_a = tl.load(over, mask=inside, other=0.0)
        over_b = tl.load(over + 1, mask=inside, other=0.0)
        tl.store(over, over_a * scales[FIRST[pair]], mask=inside)
        tl.store(over + 1, over_b * scales[SECOND[pair]], mask=inside)


@triton.jit(do_not_specialize=["first_token"])
def write_gradient(
    logits,
    targets,
    highest,
    sums,
    coefficients,
    gradient,
    row_stride,
    first_token,
    UNIFORM: tl.constexpr,
    AT_TARGET: tl.constexpr,
    NUMBERS: tl.constexpr,
    PAIR_NUMBERS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program is a block of columns of a row: each element is read and written once."""
    STREAMS: tl.constexpr = len(NUMBERS)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # Columns that pad a row are written too, and nobody reads them.
    inside = column < row_stride
    start = row * STREAMS * row_stride + column
    own_sums = sums + row * (3 * STREAMS + 2 * len(FIRST))
    token = tl.load(targets + row)
    is_target = column == token - first_token
    none = tl.zeros((COLUMNS,), logits.dtype.element_ty)
    wanted = tl.where(is_target, none + (UNIFORM + AT_TARGET), none + UNIFORM)
    logit = ()
    p = ()
    share = ()
    for s in tl.static_range(STREAMS):
        z = tl.load(logits + start + s * row_stride, mask=inside, other=0.0)
        one_over_total = 1.0 / tl.load(own_sums + s)
        logit += (z,)
        share += (one_over_total,)
        p += (tl.exp(z - tl.load(highest + row * STREAMS + s)) * one_over_total,)
    for s in tl.static_range(STREAMS):
        total = tl.load(coefficients + NUMBERS[s]) * (p[s] - wanted)
        for pair in tl.static_range(len(FIRST)):
            half = 0.5 * tl.load(coefficients + PAIR_NUMBERS[pair])
            over = own_sums + 3 * STREAMS + 2 * pair
            d = logit[FIRST[pair]] - logit[SECOND[pair]]
            apart = p[FIRST[pair]] - p[SECOND[pair]]
            if FIRST[pair] == s:
                total += half * (p[s] * (d - tl.load(over) * share[s]) + apart)
            elif SECOND[pair] == s:
                total -= half * (p[s] * (d - tl.load(over + 1) * share[s]) + apart)
        total = tl.where(token >= 0, total, 0.0)
        place = gradient + start + s * row_stride
        tl.store(place, total.to(gradient.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def sum_terms(
    targets,
    sums,
    highest,
    terms,
    rows,
    num_terms,
    SMOOTHING: tl.constexpr,
    UNIFORM: tl.constexpr,
    NUMBERS: tl.constexpr,
    PAIR_NUMBERS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program is a block of rows, a thread a row; it writes the sum of its rows' terms."""
    STREAMS: tl.constexpr = len(NUMBERS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    real = tl.load(targets + row, mask=inside, other=-1) >= 0
    first = sums + row * (3 * STREAMS + 2 * len(FIRST))
    out = terms + tl.program_id(0) * num_terms
    for s in tl.static_range(STREAMS):
        top = tl.load(highest + row * STREAMS + s, mask=inside, other=0.0)
        total = tl.load(first + s, mask=inside, other=1.0)
        target = tl.load(first + STREAMS + s, mask=inside, other=0.0)
        plain = tl.load(first + 2 * STREAMS + s, mask=inside, other=0.0)
        # Relative to the largest logit, so that no large numbers are subtracted.
        rest = UNIFORM * plain - SMOOTHING * top
        cross_entropy = tl.log(total) - (1.0 - SMOOTHING) * (target - top) - rest
        tl.store(out + NUMBERS[s], tl.sum(tl.where(real, cross_entropy, 0.0), 0))
    for pair in tl.static_range(len(FIRST)):
        over = first + 3 * STREAMS + 2 * pair
        total_a = tl.load(first + FIRST[pair], mask=inside, other=1.0)
        total_b = tl.load(first + SECOND[pair], mask=inside, other=1.0)
        mean_a = tl.load(over, mask=inside, other=0.0) / total_a
        mean_b = tl.load(over + 1, mask=inside, other=0.0) / total_b
        apart = tl.where(real, mean_a - mean_b, 0.0)
        tl.store(out + PAIR_NUMBERS[pair], 0.5 * tl.sum(apart, 0))
