"""Packed into one row, samples give the numbers that they give alone: losses, every term, and all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus_pt.config.schema import ObjectiveConfig
from janus_pt.model.padding import join_samples, split_samples
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import Example
from janus_pt.packing.padded import make_padded_layout
from tests.support.models import tiny_model

CASES = [(name, "query") for name in OBJECTIVES] + [
    (name, "content") for name in ("janus", "ar", "joint")
]
KINDS = ("uniform", "span", "infill")
sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=2, max_size=5)


def examples(
    name: str, ar_stream: str, kind: str, lengths: list[tuple[int, int]], seed: int
) -> list[Example]:
    """Pairs of random tokens with sources and targets of these lengths, bos and eos not counted."""
    rng, shape = np.random.default_rng(seed), tiny_model(ar_stream=ar_stream).config
    config = ObjectiveConfig.model_validate(
        {"name": name, "recipe": "translation", "masking": {"kind": kind}}
    )
    made = []
    for source, target in lengths:
        fields = {"source": rng.integers(5, 24, source), "target": rng.integers(5, 24, target)}
        made.append(make_example(fields, rng, model=shape, objective=config))
    return made


def numbers(
    name: str, ar_stream: str, batches: list[list[Example]], rounded: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sums of all terms behind the total, and all gradients, over some batches.

    `rounded`: of a model whose weights differ by one rounding.
    """
    config = ObjectiveConfig.model_validate(
        {"name": name, "recipe": "translation", "label_smoothing": 0.1}
    )
    model = tiny_model(ar_stream=ar_stream, dropout=0.0)
    if rounded:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + torch.finfo(torch.float64).eps)
    module = TrainingModule(model, ObjectiveLoss(config, VocabShard(24))).train()
    coefficients = torch.linspace(0.3, 0.9, len(module.loss.names), dtype=torch.float64)
    found = []
    for batch in batches:
        total, sums = module(collate_examples(batch, config), coefficients)
        total.backward()
        found.append(torch.cat((total.detach()[None], sums)))
    return torch.stack(found).sum(0), {
        n: p.grad for n, p in module.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize(("name", "ar_stream"), CASES)
@settings(max_examples=12, deadline=None)
@given(lengths=sizes, kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_a_packed_batch_is_the_sum_of_its_samples(
    name: str, ar_stream: str, lengths: list[tuple[int, int]], kind: str, seed: int
) -> None:
    made = examples(name, ar_stream, kind, lengths, seed)
    packed, gradients = numbers(name, ar_stream, [made])
    alone, expected = numbers(name, ar_stream, [[example] for example in made])
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == expected.keys()
    # Some random models amplify roundings. What one rounding of the weights changes says how much.
    _, nearby = numbers(name, ar_stream, [[example] for example in made], rounded=True)
    for key, gradient in gradients.items():
        one_rounding = float((nearby[key] - expected[key]).abs().max())
        allowed = max(1e-12, 1e-12 * float(expected[key].abs().max()), 10 * one_rounding)
        assert (gradient - expected[key]).abs().max() <= allowed, key


@settings(max_examples=50, deadline=None)
@given(
    row=st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 1)), max_size=30).map(
        lambda row: [(0, 0), *row]
    ),
    heads=st.integers(1, 3),
)
def test_samples_are_split_and_joined_without_loss(row: list[tuple[int, int]], heads: int) -> None:
    samples, groups = (np.array(column) for column in zip(*row, strict=True))
    grids = make_padded_layout(samples, groups, 4, 2)
    x = torch.randn(len(row), heads, 2, dtype=torch.float64, requires_grad=True)
    parts = split_samples(x, grids)
    for group, (part, places) in enumerate(zip(parts, grids.indices, strict=True)):
        for sample in range(4):
            here = [place for place, belongs in enumerate(row) if belongs == (sample, group)]
            assert places[sample].tolist() == here + [-1] * (places.shape[1] - len(here))
            assert torch.equal(part[:, sample, : len(here)], x[here].transpose(0, 1))
    real = torch.from_numpy(samples >= 0)[:, None, None]
    assert torch.equal(join_samples(parts, grids), x * real)
    assert torch.autograd.gradcheck(
        lambda x: sum(
            _filled(p, g) for p, g in zip(split_samples(x, grids), grids.indices, strict=True)
        ),
        x,
    )
    assert torch.autograd.gradcheck(
        lambda *parts: join_samples(parts, grids), tuple(p.detach().requires_grad_() for p in parts)
    )


def _filled(part: Tensor, places: Tensor) -> Any:
    """A number that depends on all of a grid but its padding."""
    return (part.square() * (places >= 0)[..., None]).sum()
