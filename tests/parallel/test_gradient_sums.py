"""Gradients handled together, and reduced to their owners, against DeepSpeed's own way: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from janus_pt.parallel import gradient_shares, owners
from tests.support.measured_memory import build_config, micro_batches
from tests.support.ranks import run_ranks

STEPS = 3


def _train(
    together: bool,
    immediate: bool,
    ranks: int = 1,
    reduce: str = "float32",
    dropout: float = 0.1,
    captured: bool = False,
) -> tuple[list[float], torch.Tensor]:
    """Norms of a few steps of two micro-batches, and this rank's float32 weights after them."""
    from janus_pt.parallel import engine as engines
    from janus_pt.parallel import groups
    from janus_pt.parallel.assemble import assemble
    from janus_pt.train.step import train_step

    if not together:
        engines.batch_gradients = lambda *_: None
    config = build_config(
        vocab=200,
        hidden=32,
        length=32,
        accumulate=2,
        dtype="bfloat16",
        dropout=dropout,
        ranks=ranks,
        reduce=reduce,
    )
    # Below every norm: all gradients are clipped.
    clipped = config.optimizer.model_copy(update={"clip_norm": 0.01})
    block: dict[str, Any] = {**config.deepspeed, "bf16": {"immediate_grad_update": immediate}}
    run = config.run.model_copy(update={"cuda_graphs": captured})
    config = config.model_copy(update={"optimizer": clipped, "deepspeed": block, "run": run})
    groups.initialize()
    engine = assemble(config)
    norms = []
    for step in range(1, STEPS + 1):
        seed = step * ranks + torch.distributed.get_rank()
        train_step(engine, micro_batches(config, seed), step, 1)
        norms.append(float(engine.get_global_grad_norm()))
    masters: Any = engine.optimizer
    weights = torch.cat([part.detach() for part in masters.fp32_groups_flat_partition])
    groups.shutdown()
    return norms, weights


def train(immediate: bool) -> tuple[bool, bool]:
    """Whether norms, and weights, are equal."""
    from janus_pt.parallel import engine as engines

    original = engines.batch_gradients
    norms, weights = _train(True, immediate)
    try:
        reference_norms, reference = _train(False, immediate)
    finally:
        engines.batch_gradients = original
    return norms == reference_norms, torch.equal(weights, reference)


def train_captured() -> tuple[tuple[list[float], list[float]], ...]:
    """Norms and weights of passes that would be recorded on a GPU, and of those that would not."""
    from janus_pt.parallel import assemble

    assemble._check_graphs = lambda _: None
    found = []
    for captured in (True, False):
        norms, weights = _train(True, True, dropout=0.0, captured=captured)
        found.append((norms, weights.tolist()))
    return tuple(found)


def train_on_two(together: bool, reduce: str, most_owners: int) -> tuple[list[float], list[float]]:
    """Norms and this rank's weights, in chunks so small that many leave early and some have two owners."""
    from janus_pt.parallel import engine as engines
    from janus_pt.parallel import owners

    original = engines.batch_gradients, owners.CHUNK_ELEMENTS, owners.MOST_OWNERS
    owners.CHUNK_ELEMENTS, owners.MOST_OWNERS = 2000, most_owners
    try:
        norms, weights = _train(together, True, 2, reduce)
    finally:
        engines.batch_gradients, owners.CHUNK_ELEMENTS, owners.MOST_OWNERS = original
    return norms, weights.tolist()


@pytest.mark.parametrize("immediate", [False, True])
def test_sums_norm_and_clipping_are_deepspeeds(immediate: bool) -> None:
    assert run_ranks(train, 1, immediate) == [(True, True)]


def test_passes_that_are_recorded_update_as_others() -> None:
    """All gradients go past DeepSpeed's hooks, and still there are norms, clipping and updates."""
    [((norms, weights), (other_norms, others))] = run_ranks(train_captured, 1)
    # In another order in bfloat16 where a parameter is used several times.
    assert norms == pytest.approx(other_norms, rel=1e-3)
    assert weights == pytest.approx(others, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reduce", "most_owners"), [("float32", 2), ("bfloat16", 2), ("float32", 1)]
)
def test_what_each_rank_keeps_is_deepspeeds_sum(reduce: str, most_owners: int) -> None:
    ours, theirs = (
        run_ranks(train_on_two, 2, together, reduce, most_owners) for together in (True, False)
    )
    for (norms, weights), (reference_norms, reference) in zip(ours, theirs, strict=True):
        # The norm adds its squares in another order, and clipping scales all by it.
        assert norms == pytest.approx(reference_norms, rel=1e-6)
        assert weights == pytest.approx(reference, rel=1e-5, abs=1e-7)


def test_chunks_leave_in_the_order_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flat tensor of matrices and one of vectors, of four layers: the last layer's leave first."""
    flats = [torch.empty(40), torch.empty(8)]
    views = [list(flats[0].split(10)), list(flats[1].split(2))]
    monkeypatch.setattr(owners, "CHUNK_ELEMENTS", 20)
    chunks = gradient_shares.make_chunks(views, [[0, 2, 4, 6], [1, 3, 5, 7]])
    found = [(chunk.flat, chunk.start, chunk.stop, chunk.missing) for chunk in chunks]
    assert found == [(0, 20, 40, 2), (1, 0, 8, 4), (0, 0, 20, 2)]
