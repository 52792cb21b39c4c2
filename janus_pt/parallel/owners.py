"""How gradients go to the data-parallel ranks that keep them, as far as plans must know."""

from __future__ import annotations

from janus_pt.config.parallel_schema import ParallelConfig, PrecisionConfig

CHUNK_ELEMENTS = 1 << 25
"""Gradients leave when they are so many: large enough to use links well, and many in a backward pass."""
MOST_OWNERS = 64
"""Each rank that keeps a share is a call of its own. Among more ranks their latencies would be longer than
what overlapping saves: there one reduce-scatter follows the backward pass."""


def go_to_owners(parallel: ParallelConfig, precision: PrecisionConfig) -> bool:
    """Whether ranks get the sums of their shares alone (`gradient_shares.py`).

    So it is where DeepSpeed takes its bfloat16 optimizer.
    """
    on_device = not parallel.offload_optimizer
    return precision.dtype == "bfloat16" and parallel.zero_stage == 1 and on_device


def leave_early(ranks: int, is_pipeline: bool, captured: bool) -> bool:
    """Whether gradients leave during the backward pass, owner by owner.

    A pipeline's stage has its last backward pass while the pipeline empties, and then nothing to do.
    Graphs (`run.cuda_graphs`) add gradients without a word.
    """
    return ranks <= MOST_OWNERS and not is_pipeline and not captured
