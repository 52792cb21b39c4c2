"""CTC on a CUDA device: the sums over paths by a Triton kernel, with lengths that only the device knows.

torch's own CTC loss wants the lengths on the host and copies them to the device, five times a loss, from memory that is
not page-locked: the host waits each time.

A sample's states are a blank, its first label, a blank, its second label, and so on to a last blank. A path goes
through its rows, one state a row: it stays, goes to the next state, or passes over a blank between two different labels
(Graves et al. 2006, section 4.1).
"""

# Triton's language is not Python's, and what it compiles has no types here.
# mypy: ignore-errors

import torch
import triton
import triton.language as tl
from torch import Tensor

LOWEST = tl.constexpr(-1e30)
"""Stands for log 0. Finite: the difference of two is 0, not NaN."""


@triton.jit(do_not_specialize=["samples", "most_rows", "most_states"])
def sum_paths(
    log_probs,
    skips,
    row_counts,
    state_counts,
    sums,
    samples,
    most_rows,
    most_states,
    STATES: tl.constexpr,
):
    """A program is a sample and a direction: 0 from the first row to the last, 1 from the last to the first, which is
    the same walk with rows and states counted from the end. A row of `sums` is made of the row before it, which the
    threads read from each other through memory."""
    sample, from_end = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = tl.load(row_counts + sample)
    states = tl.load(state_counts + sample)
    state = tl.arange(0, STATES)
    inside = state < states
    # Where a state's numbers lie, and in which direction its neighbours.
    place = tl.where(from_end == 1, states - 1 - state, state)
    step = tl.where(from_end == 1, -1, 1)
    # `skips` belongs to the later state of a path, which a walk from the end comes from.
    later = tl.where(from_end == 1, place + 2, place)
    may_skip = tl.load(skips + sample * most_states + later, inside & (state >= 2), 0) > 0
    first = sample * most_rows * most_states
    own_sums = sums + from_end.to(tl.int64) * samples * most_rows * most_states + first
    total = tl.where(state < 2, 0.0, LOWEST)
    for count in range(rows):
        row = tl.where(from_end == 1, rows - 1 - count, count)
        here = row * most_states + place
        if count > 0:
            before = own_sums + here - step * most_states
            one = tl.load(before - step, inside & (state >= 1), LOWEST)
            two = tl.load(before - 2 * step, may_skip, LOWEST)
            most = tl.maximum(tl.maximum(total, one), two)
            total = most + tl.log(tl.exp(total - most) + tl.exp(one - most) + tl.exp(two - most))
        total += tl.load(log_probs + first + here, inside, 0.0)
        tl.store(own_sums + here, total, inside)
        tl.debug_barrier()


def losses_and_shares(
    log_probs: Tensor, labels: Tensor, row_counts: Tensor, label_counts: Tensor
) -> tuple[Tensor, Tensor]:
    """-log P of each sample `[samples]`, and the share of its paths through a class `[samples, most rows, classes]`.

    All tensors are on one device; nothing is read on the host.

    Args:
        log_probs: `[samples, most rows, classes]`, the blank first.
        labels: classes of the targets, `[samples, most labels]`.
        row_counts, label_counts: `[samples]`.
    """
    samples, most_rows, _ = log_probs.shape
    most_states = 2 * labels.shape[1] + 1
    of_states = labels.new_zeros(samples, most_states)
    of_states[:, 1::2] = labels
    # From a label to the next one past the blank between them, if they differ.
    skips = torch.zeros_like(of_states)
    skips[:, 3::2] = (labels[:, 1:] != labels[:, :-1]).to(skips.dtype)
    index = of_states[:, None].expand(-1, most_rows, -1)
    of_paths = log_probs.gather(2, index)
    sums = of_paths.new_full((2, *of_paths.shape), LOWEST.value)
    sum_paths[(samples, 2)](
        of_paths,
        skips,
        row_counts,
        2 * label_counts + 1,
        sums,
        samples,
        most_rows,
        most_states,
        STATES=triton.next_power_of_2(most_states),
        num_warps=4,
    )
    # Both walks have counted the row that they meet in.
    through = sums[0] + sums[1] - of_paths
    # Every path goes through a state of the first row.
    total = through[:, 0].logsumexp(-1)
    posterior = (through - total[:, None, None]).exp()
    return -total, torch.zeros_like(log_probs).scatter_add_(2, index, posterior)
