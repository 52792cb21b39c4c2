"""What the golden vectors do not cover: activation checkpointing, dropout, padding, position offsets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from janus_pt.config.schema import ModelConfig
from janus_pt.model.attention import additive, attend
from janus_pt.model.dropout import (
    RowShare,
    Seed,
    add_dropped,
    dropout,
    seed_generators,
    seed_layer,
    torch_dropout,
)
from janus_pt.model.initialize import initialize_weights
from janus_pt.model.masks import EncoderMasks, LayerMasks, readable
from janus_pt.model.transformer import JanusTransformer
from janus_pt.packing.batch import Batch, collate
from janus_pt.packing.slots import POSITION, TOKEN, Slots, Source
from tests.support.examples import make_example_of
from tests.support.models import SHAPE


def batch(count: int = 3, offset: int = 1) -> Batch:
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(5, 24, 3 + n), np.array([1, *rng.integers(5, 24, 4 + 2 * n), 2]))
        for n in range(count)
    ]
    masked = np.array([1, 3, 4])
    return collate(
        [make_example_of("janus", s, t, masked, position_offset=offset) for s, t in pairs]
    )


def model(**changes: object) -> JanusTransformer:
    ours = JanusTransformer(
        ModelConfig.model_validate({**SHAPE, "init_std": 0.2, **changes})
    ).double()
    initialize_weights(ours, seed=0)
    return ours


@pytest.mark.parametrize("seed", [None, (1, 7, 3)])
@pytest.mark.parametrize("pre_layer_norm", [False, True])
@pytest.mark.parametrize("part", ["attention", "feed_forward", "all"])
def test_recomputing_activations_changes_no_number(
    part: str, pre_layer_norm: bool, seed: Seed | None
) -> None:
    found = []
    for recompute in ("none", part):
        ours = model(
            pre_layer_norm=pre_layer_norm,
            dropout=0.3,
            attention_dropout=0.2,
            activation_dropout=0.1,
            causal_self_attention=True,
        )
        ours.recompute_activations(recompute)
        torch.manual_seed(5)
        ours.seed_dropout(seed)
        hidden, length = ours(batch().source, batch().slots)
        (hidden.square().mean() + length.square().mean()).backward()
        found.append((hidden.detach(), [p.grad for p in ours.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    for kept, recomputed in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(kept, recomputed)


def test_dropout_is_on_in_training_alone() -> None:
    ours, b = model(dropout=0.3), batch()
    assert not torch.equal(ours(b.source, b.slots)[0], ours(b.source, b.slots)[0])
    ours.eval()
    assert torch.equal(ours(b.source, b.slots)[0], ours(b.source, b.slots)[0])


def test_seeded_dropout_is_a_function_of_the_seed_and_differs_between_layers() -> None:
    ours, b = model(dropout=0.3), batch()
    found = []
    for seed in ((1, 2, 3), (1, 2, 3), (1, 2, 4), (1, 3, 3)):
        torch.manual_seed(len(found))
        ours.seed_dropout(seed)
        found.append(ours(b.source, b.slots)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])
    draws = []
    for layer in range(3):
        seed_layer((1, 2, 3), layer)
        draws.append(torch.rand(4))
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, 2**64 - 1])
def test_generators_are_seeded_as_torch_does(seed: int) -> None:
    torch.manual_seed(seed)
    expected = torch.get_rng_state()
    torch.rand(3)
    seed_generators(seed)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_computed_table_in_float32_leaves_the_model_in_bfloat16() -> None:
    ours, b = model(positions="sinusoidal").eval(), batch()
    for parameter in ours.parameters():
        parameter.data = parameter.data.bfloat16()
    assert ours.encoder.embed_positions.table.dtype != torch.bfloat16
    assert ours(b.source, b.slots)[0].dtype == torch.bfloat16


def test_new_weights_depend_on_seed_and_name_alone() -> None:
    first, again, deeper, other = (
        dict(m.named_parameters())
        for m in (model(), model(), model(decoder_layers=3), model(ffn_hidden_size=32))
    )
    for name, weight in first.items():
        assert torch.equal(weight, again[name]) and torch.equal(weight, deeper[name])
    table = first["embed_tokens.weight"].detach()
    assert torch.equal(table, other["embed_tokens.weight"])
    assert abs(float(table.std()) - 0.2) < 0.02 and abs(float(table.mean())) < 0.02
    assert (
        first["encoder.layers.0.fc1.bias"].eq(0).all()
        and first["encoder.layers.0.final_layer_norm.weight"].eq(1).all()
    )


def everything(slots: Slots) -> Slots:
    """The same slots, no one of them left out in the last layer."""
    return replace(slots, first_predicting=0, predicting_layout=slots.query_layout)


def test_a_sample_does_not_know_its_neighbours() -> None:
    """Alone or in a batch a sample's hidden states are the same."""
    ours, b = model().eval(), batch()
    hidden = ours(b.source, everything(b.slots))[0][0]
    rng = np.random.default_rng(0)
    for row in range(3):
        source, target = (
            rng.integers(5, 24, 3 + row),
            np.array([1, *rng.integers(5, 24, 4 + 2 * row), 2]),
        )
        alone = collate([make_example_of("janus", source, target, np.array([1, 3, 4]))])
        expected = ours(alone.source, everything(alone.slots))[0][0]
        torch.testing.assert_close(
            hidden[b.slots.samples[0] == row],
            expected[alone.slots.samples[0] == 0],
            rtol=1e-10,
            atol=1e-12,
        )


def test_the_position_offset_moves_the_causal_slots_alone() -> None:
    tables = [batch(1, offset).slots.table[0] for offset in (0, 1)]
    moved = tables[1][:, 1] - tables[0][:, 1]
    causal = tables[0][:, 2] == 0
    assert torch.equal(moved.bool(), causal) and moved.max() == 1


@dataclass(frozen=True)
class AllSlots:
    """The same masks for every layer, the last included."""

    masks: LayerMasks

    def for_layer(self, is_last: bool) -> LayerMasks:
        return self.masks


def dense_pass(ours: JanusTransformer, source: Source, slots: Slots) -> torch.Tensor:
    """All slots' hidden states under dense masks of the whole row: encoder, decoder and last layer alike."""
    same = source.samples[0, :, None] == source.samples[0]
    cross = slots.samples[0, :, None] == source.samples[0]
    seen = readable(slots.table[0], slots.table[0, : slots.num_content])
    mask, cross_mask, self_mask = (
        additive(m[None, None], torch.float64) for m in (same, cross, seen)
    )
    encoded = ours.encoder(ours.embed_tokens(source.tokens), source.positions, EncoderMasks(mask))
    masks = LayerMasks(slots.num_content, 0, self_mask, cross_mask)
    return ours.decoder(ours.embed_tokens(slots[TOKEN]), slots[POSITION], encoded, AllSlots(masks))


def test_what_is_left_out_changes_no_number() -> None:
    """Neither the slots that the last layer leaves out, nor the pairs that lie in no grid."""
    b, found = batch(), []
    assert b.slots.first_predicting > 0
    for compute in (lambda ours: ours.decode(b.slots, ours.encode(b.source), b.source),
                    lambda ours: dense_pass(ours, b.source, b.slots)[:, b.slots.first_predicting :]):  # fmt: skip
        ours = model(dropout=0.0)
        predicted = compute(ours)[0][torch.cat(list(b.predict.values()))]
        (predicted * torch.arange(1, 17)).square().mean().backward()
        found.append(
            (predicted.detach(), [p.grad for p in ours.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(*(hidden for hidden, _ in found), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(gradients for _, gradients in found), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_keeps_the_share_and_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)
    kept = dropout(x, probability)
    assert abs(float((kept == 0).double().mean()) - probability) < 2e-3
    assert abs(float(kept.double().mean()) - 1) < 3e-3 and len(kept.unique()) == 2
    neighbours = (kept[:, 1:] == 0) & (kept[:, :-1] == 0)
    assert abs(float(neighbours.double().mean()) - probability**2) < 2e-3
    torch.manual_seed(0)
    assert torch.equal(add_dropped(2 * x, x, probability), 2 + kept)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("drop", [dropout, torch_dropout])
def test_ranks_that_share_rows_draw_what_one_draws(drop: Any, ranks: int) -> None:
    x = torch.rand(1, 8, 5) + 1
    found = []
    for share in (RowShare(), *(RowShare(rank, ranks) for rank in range(ranks))):
        torch.manual_seed(3)
        found.append(drop(share.own(x), 0.4, share))
    torch.testing.assert_close(torch.cat(found[1:], dim=1), found[0])
    assert (found[0] == 0).any()


def test_attention_with_dropout_is_attention_with_some_weights_left_out() -> None:
    """The mean over many draws comes near the attention without; and a probability next to 0 gives it exactly."""
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 2, 2, 5, 8, dtype=torch.float64).unbind(0)
    seen = torch.rand(2, 1, 5, 5) < 0.6
    seen[:, :, :, 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    mask = additive(seen, torch.float64)
    q.requires_grad_()
    for same in (mask, seen):
        torch.testing.assert_close(attend(q, k, v, same, 1e-9), expected)
    draws = torch.stack([attend(q, k, v, mask, 0.25).detach() for _ in range(2000)])
    assert draws.std(0).max() > 0.1 and (draws.mean(0) - expected).abs().max() < 0.1
