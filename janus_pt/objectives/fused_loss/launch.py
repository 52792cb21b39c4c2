"""Launches of the losses' kernels, with their block sizes."""

from __future__ import annotations

from dataclasses import dataclass

import triton
from torch import Tensor

from janus_pt.objectives.fused_loss import kernels

GRADIENT_COLUMNS = 1024
"""Columns of a program of `write_gradient`: 8 a thread, 16 bytes of a bfloat16 gradient."""
TERM_ROWS = 128
"""Rows of a program of `sum_terms` and `to_shared_highest`: one a thread."""


@dataclass(frozen=True)
class Plan:
    """What kernels are compiled for.

    numbers: for each stream the number of its term.
    pair_numbers: for each pair the number of its term.
    first, second: for each pair its streams, as indices into `numbers`.
    smoothing: of the labels.
    uniform: smoothing's target probability of each token, `smoothing / vocabulary`.
    """

    numbers: tuple[int, ...]
    pair_numbers: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]
    smoothing: float
    uniform: float

    @property
    def num_sums(self) -> int:
        """Columns of `sums`."""
        return 3 * len(self.numbers) + 2 * len(self.first)

    @property
    def warps(self) -> int:
        """Warps of a program of `sum_rows`.

        A row has one program. With several streams a chunk has few rows, about four for each
        multiprocessor of a large GPU: 8 warps each keep enough loads in flight. With one stream it
        has three times as many, and of 4 warps each all are resident at once."""
        return 8 if len(self.numbers) > 1 else 4


def sum_rows(
    logits: Tensor, targets: Tensor, highest: Tensor, sums: Tensor, first_token: int, plan: Plan
) -> None:
    """Write each row's largest logits and its sums over this rank's part of the vocabulary.

    Args:
        logits: `[rows * streams, vocab_rows]`, whose rows may be longer in memory.
        targets: `[rows]`, tokens of the whole vocabulary; -1 is padding.
        highest: written, `[rows, streams]`.
        sums: written, `[rows, plan.num_sums]`.
        first_token: the token of column 0.
    """
    rows, vocab_rows = len(targets), logits.shape[1]
    if rows == 0:
        return
    kernels.sum_rows[(rows,)](
        logits,
        targets,
        highest,
        sums,
        vocab_rows,
        logits.stride(0),
        first_token,
        STREAMS=len(plan.numbers),
        FIRST=plan.first,
        SECOND=plan.second,
        LANES=32 * plan.warps,
        num_warps=plan.warps,
    )


def to_shared_highest(sums: Tensor, own_highest: Tensor, highest: Tensor, plan: Plan) -> None:
    """Make `sums`, taken with this rank's largest logits, sums with the largest of all ranks."""
    rows = len(sums)
    if rows == 0:
        return
    kernels.to_shared_highest[(triton.cdiv(rows, TERM_ROWS),)](
        sums,
        own_highest,
        highest,
        rows,
        STREAMS=len(plan.numbers),
        FIRST=plan.first,
        SECOND=plan.second,
        ROWS=TERM_ROWS,
    )


def write_gradient(
    logits: Tensor,
    targets: Tensor,
    highest: Tensor,
    sums: Tensor,
    coefficients: Tensor,
    gradient: Tensor,
    first_token: int,
    plan: Plan,
) -> None:
    """Write the weighted total's gradient by the logits.

    Args:
        logits, targets, first_token: as in `sum_rows`.
        highest, sums: of the whole vocabulary.
        coefficients: `[terms]`.
        gradient: written, of the shape and strides of `logits`; may be `logits` itself. Zero at padding.
    """
    rows, vocab_rows = len(targets), logits.shape[1]
    if rows == 0:
        return
    assert gradient.stride() == logits.stride()
    kernels.write_gradient[(rows, triton.cdiv(vocab_rows, GRADIENT_COLUMNS))](
        logits,
        targets,
        highest,
        sums,
        coefficients,
        gradient,
        logits.stride(0),
        first_token,
        UNIFORM=plan.uniform,
        AT_TARGET=1.0 - plan.smoothing,
        NUMBERS=plan.numbers,
        PAIR_NUMBERS=plan.pair_numbers,
        FIRST=plan.first,
        SECOND=plan.second,
        COLUMNS=GRADIENT_COLUMNS,
        num_warps=4,
    )


def sum_terms(targets: Tensor, sums: Tensor, highest: Tensor, terms: Tensor, plan: Plan) -> None:
    """Add up the terms of blocks of rows; padding has none.

    Args:
        targets: as in `sum_rows`.
        sums, highest: of the whole vocabulary.
        terms: written at the plan's terms, `[blocks of TERM_ROWS rows, terms]`.
    """
    rows = len(sums)
    if rows == 0:
        return
    kernels.sum_terms[(triton.cdiv(rows, TERM_ROWS),)](
        targets,
        sums,
        highest,
        terms,
        rows,
        terms.shape[1],
        SMOOTHING=plan.smoothing,
        UNIFORM=plan.uniform,
        NUMBERS=plan.numbers,
        PAIR_NUMBERS=plan.pair_numbers,
        FIRST=plan.first,
        SECOND=plan.second,
        ROWS=TERM_ROWS,
    )
