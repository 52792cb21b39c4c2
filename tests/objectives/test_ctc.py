"""CTC: its loss against the sum over all paths, and what its slots read."""

from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest
import torch
from torch import Tensor

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives import ctc
from janus_pt.objectives.base import MaskedPair
from janus_pt.objectives.examples import collate_examples
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.packing.alignment import align
from janus_pt.packing.batch import Example
from janus_pt.utils.errors import UserError
from tests.support.examples import build_example

BOS, EOS, MASK = 1, 2, 4
VOCAB = 8
MODEL = ModelConfig(vocab_size=VOCAB, max_positions=12)
CONFIG = ObjectiveConfig.model_validate({"name": "ctc", "recipe": "translation"})
NONE = np.empty(0, dtype=int)


def example(source: int, text: list[int]) -> Example:
    tokens = np.array([BOS, *[5] * source, EOS])
    return build_example(MaskedPair(tokens, np.array([BOS, *text, EOS]), NONE), MODEL, CONFIG)


def by_all_paths(log_probs: Tensor, text: list[int]) -> Tensor:
    """-log of the sum over every path of `log_probs [slots, vocab]` that collapses to the text."""
    paths = []
    for path in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if [token for token, _ in groupby(path) if token != MASK] == text:
            paths.append(sum(log_probs[place, token] for place, token in enumerate(path)))
    return -torch.stack(paths).logsumexp(0)


TEXTS = ([5, 6, 5], [7, 7], [6], [5])


def test_loss_and_gradients_are_those_of_the_sum_over_all_paths() -> None:
    """Four samples of different sizes at once; repeated tokens side by side and apart."""
    generator = torch.Generator().manual_seed(0)
    counts = (4, 4, 3, 1)
    hidden = torch.randn(sum(counts), 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(VOCAB, 6, dtype=torch.float64, generator=generator)
    alignment = align(counts, [np.array([MASK, *text]) for text in TEXTS])
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]

    ours = ctc.loss(hidden, weight, alignment, VocabShard(VOCAB))
    ours_grads = torch.autograd.grad(3.0 * ours, inputs)

    log_probs = (hidden @ weight.t()).log_softmax(-1)
    parts = [
        by_all_paths(rows, text) for rows, text in zip(log_probs.split(counts), TEXTS, strict=True)
    ]
    expected = torch.stack(parts).sum()
    expected_grads = torch.autograd.grad(3.0 * expected, inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for found, wanted in zip(ours_grads, expected_grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_slots_are_masks_that_all_read_each_other() -> None:
    made = example(source=2, text=[5, 6])
    # Two slots for each of the source's four tokens, bos and eos counted.
    assert made.content[:, 0].tolist() == [MASK] * 8
    assert len(made.query) == 0 and made.predict["ctc"].tolist() == list(range(8))
    assert made.classes is not None and made.classes.tolist() == [MASK, 5, 6]
    assert made.targets.tolist() == [5, 6, EOS], "tokens are counted as in every other objective"


def test_a_long_target_gets_the_slots_that_it_needs() -> None:
    """Nine tokens, two of them repeated, of a source that would have six slots."""
    made = example(source=1, text=[5, 5, 5, 6, 7, 6, 7, 6, 7])
    assert len(made.content) == 11
    batch = collate_examples([made], CONFIG)
    assert batch.alignment is not None
    log_prob = torch.zeros(11, VOCAB, dtype=torch.float64)
    loss = ctc.loss(log_prob, torch.eye(VOCAB).double(), batch.alignment, VocabShard(VOCAB))
    # One path writes it, each slot with probability 1/8.
    assert loss.item() == pytest.approx(11 * np.log(VOCAB))


def test_a_target_without_room_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"model.max_positions: a target of 8 tokens needs 15 slots"
    ):
        example(source=1, text=[5] * 8)


def test_samples_keep_their_own_slots_and_tokens_in_a_batch() -> None:
    examples = [example(3, [5, 6]), example(1, [7]), example(2, [6, 6, 6])]
    batch = collate_examples(examples, CONFIG)
    alignment = batch.alignment
    assert alignment is not None
    assert alignment.row_counts == (10, 6, 8) and alignment.label_counts == (2, 1, 3)
    samples = batch.slots.samples[0, batch.slots.first_predicting :]
    of_rows = samples[batch.predict["ctc"]]
    torch.testing.assert_close(of_rows.long(), alignment.samples)
    for sample, count in enumerate(alignment.row_counts):
        assert (of_rows[alignment.rows[sample, :count]] == sample).all()
