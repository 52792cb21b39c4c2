"""What the golden vectors do not cover: activation checkpointing, dropout, padding, position offsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import SHAPE

from janus_pt.config import ModelConfig
from janus_pt.model.janus import JanusTransformer
from janus_pt.objectives import janus
from janus_pt.objectives.batch import Batch, collate


def batch(count: int = 3, offset: int = 1) -> Batch:
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(5, 24, 3 + n), np.array([1, *rng.integers(5, 24, 4 + 2 * n), 2])) for n in range(count)]
    return collate([janus.example(s, t, np.array([1, 3, 4]), 4, offset) for s, t in pairs], 0)


def model(**changes: object) -> JanusTransformer:
    torch.manual_seed(0)
    return JanusTransformer(ModelConfig.model_validate({**SHAPE, "init_std": 0.2, **changes})).double()


@pytest.mark.parametrize("pre_layer_norm", [False, True])
def test_recomputing_activations_changes_no_number(pre_layer_norm: bool) -> None:
    found = []
    for recompute in (False, True):
        ours = model(pre_layer_norm=pre_layer_norm, dropout=0.3, attention_dropout=0.2, activation_dropout=0.1)
        ours.recompute_activations(recompute)
        torch.manual_seed(5)
        hidden, length = ours(batch().source, batch().slots)
        (hidden.square().mean() + length.square().mean()).backward()
        found.append((hidden.detach(), [p.grad for p in ours.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    for kept, recomputed in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-12, atol=1e-14)


def test_dropout_is_on_in_training_alone() -> None:
    ours, b = model(dropout=0.3), batch()
    assert not torch.equal(ours(b.source, b.slots)[0], ours(b.source, b.slots)[0])
    ours.eval()
    assert torch.equal(ours(b.source, b.slots)[0], ours(b.source, b.slots)[0])


def test_a_sample_does_not_know_its_neighbours() -> None:
    """Alone or in a batch, padded or not, a sample's hidden states are the same."""
    ours, b = model().eval(), batch()
    hidden = ours(b.source, b.slots)[0]
    rng = np.random.default_rng(0)
    for row in range(3):
        source, target = rng.integers(5, 24, 3 + row), np.array([1, *rng.integers(5, 24, 4 + 2 * row), 2])
        alone = collate([janus.example(source, target, np.array([1, 3, 4]), 4, 1)], 0)
        expected = ours(alone.source, alone.slots)[0][0]
        real = b.slots.samples[row] >= 0
        torch.testing.assert_close(hidden[row][real], expected, rtol=1e-10, atol=1e-12)


def test_the_position_offset_moves_the_causal_slots_alone() -> None:
    tables = [batch(1, offset).slots.table[0] for offset in (0, 1)]
    moved = tables[1][:, 1] - tables[0][:, 1]
    causal = tables[0][:, 2] == 0
    assert torch.equal(moved.bool(), causal) and moved.max() == 1
