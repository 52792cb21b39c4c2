"""Counts of a step and the coefficients made of them, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from janus_pt.config.schema import ModelConfig, ObjectiveConfig
from janus_pt.objectives.coefficients import coefficients, term_rows
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss
from janus_pt.packing.batch import Batch
from janus_pt.train.counts import SIZE_NAMES, Counts, Sizes, batch_sizes

MODEL = ModelConfig(vocab_size=50, hidden_size=16, num_attention_heads=2, max_positions=32)
OBJECTIVE = ObjectiveConfig.model_validate({"recipe": "translation"})
LENGTHS = [(7, 9), (3, 4), (10, 6)]


def batch(objective: ObjectiveConfig) -> Batch:
    rng = np.random.default_rng(0)
    pairs = [
        {"source": rng.integers(5, 50, source), "target": rng.integers(5, 50, target)}
        for source, target in LENGTHS
    ]
    examples = [make_example(pair, rng, model=MODEL, objective=objective) for pair in pairs]
    return collate_examples(examples, objective)


def test_sizes_are_those_of_the_sentences() -> None:
    sizes = batch_sizes(batch(OBJECTIVE))
    assert sizes.sentences == len(LENGTHS)
    # bos and eos are around each sentence; of a target all but bos are predicted
    assert sizes.source_tokens == sum(source + 2 for source, _ in LENGTHS)
    assert sizes.target_tokens == sum(target + 1 for _, target in LENGTHS)


def test_a_plain_left_to_right_objective_predicts_each_token_once() -> None:
    objective = ObjectiveConfig.model_validate({"name": "ar", "recipe": "translation"})
    made = batch(objective)
    sizes = batch_sizes(made)
    assert sizes.predicted_slots == sizes.target_tokens
    loss = ObjectiveLoss(objective, VocabShard(MODEL.vocab_size))
    assert term_rows(made, loss.terms) == [sizes.target_tokens, sizes.sentences]


def test_counts_add_up_and_keep_their_names() -> None:
    first = Counts(torch.arange(9, dtype=torch.float64))
    both = first + first
    assert both.rows.tolist() == [0, 2, 4]
    assert both.sizes() == Sizes(*(2.0 * (3 + index) for index in range(len(SIZE_NAMES))))
    assert float(both.target_tokens) == both.sizes().target_tokens
    assert (both - first).values.tolist() == first.values.tolist()
    assert Counts.zeros(3, torch.device("cpu")).values.shape == first.values.shape


@pytest.mark.parametrize("normalize_by", ["slots", "tokens"])
def test_coefficients_are_weights_over_counts(normalize_by: str) -> None:
    objective = OBJECTIVE.model_copy(update={"normalize_by": normalize_by})
    loss = ObjectiveLoss(objective, VocabShard(MODEL.vocab_size))
    rows = torch.arange(2, 2 + len(loss.names), dtype=torch.float64)
    rows[1] = 0
    result = coefficients(loss, rows, 40).tolist()
    for index, weight in enumerate(loss.weights):
        is_length = index == len(loss.names) - 1
        count = 40 if normalize_by == "tokens" and not is_length else max(1.0, float(rows[index]))
        assert result[index] == pytest.approx(weight / count, rel=1e-6)
