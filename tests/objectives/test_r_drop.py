"""R-Drop: each sample in two draws of dropout, and the divergence between their predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from janus_pt.checks import read_config
from janus_pt.config.schema import ObjectiveConfig
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.packing.batch import Batch, second_draw
from janus_pt.utils.errors import UserError
from tests.support.layouts import Layout, train
from tests.support.models import tiny_model
from tests.support.ranks import run_ranks
from tests.support.runs import losses, write_run_config

ALPHA = 3.0


def objective(**changes: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"recipe": "translation", **changes})


def batch(config: ObjectiveConfig) -> Batch:
    """Three pairs of different lengths."""
    rng = np.random.default_rng(0)
    fields = [
        {"source": rng.integers(5, 24, n), "target": rng.integers(5, 24, m)}
        for n, m in ((4, 12), (3, 1), (2, 9))
    ]
    examples = [make_example(f, rng, model=tiny_model().config, objective=config) for f in fields]
    return collate_examples(examples, config)


def per_row(loss: ObjectiveLoss, made: Batch) -> torch.Tensor:
    """Coefficients of a loss that is the mean over the rows of each term."""
    rows = {stream: len(index) for stream, index in made.predict.items()}
    counts = [
        *(rows[s] for s in loss.terms.streams),
        *(min(rows[a], rows[b]) for a, b in loss.terms.pairs),
    ]
    return torch.tensor(loss.weights, dtype=torch.float64) / torch.tensor(
        [*counts, made.counts.samples]
    )


@pytest.mark.parametrize("name", ["ar", "janus"])
def test_the_mean_of_two_draws_and_their_divergence(name: str) -> None:
    """The paper's loss, halved: the two draws' hidden states are read off a forward pass with the
    same seed."""
    config, model = objective(name=name, r_drop=ALPHA), tiny_model(dropout=0.3).train()
    loss, single = (ObjectiveLoss(c, VocabShard(24)) for c in (config, objective(name=name)))
    made, plain = batch(config), batch(objective(name=name))
    model.seed_dropout((7,))
    total, sums = TrainingModule(model, loss)(made, per_row(loss, made))
    model.seed_dropout((7,))
    hidden, length_logits = model(made.source, made.slots)
    predicts = [{s: made.predict[name(s)] for s in plain.predict} for name in (str, second_draw)]
    weight = model.embed_tokens.get_parameter("weight")
    apart = [
        single(hidden, logits, weight, replace(plain, predict=predict), per_row(single, plain))[0]
        for predict, logits in zip(predicts, length_logits.chunk(2), strict=True)
    ]
    expected = (apart[0] + apart[1]) / 2
    for stream, ce in zip(single.terms.streams, single.weights, strict=False):
        p, q = (F.log_softmax(model.logits(hidden[0][predict[stream]]), -1) for predict in predicts)
        both = F.kl_div(q, p, log_target=True, reduction="none") + F.kl_div(
            p, q, log_target=True, reduction="none"
        )
        divergence = 0.5 * both.sum(-1).mean()
        assert divergence > 1e-3
        expected = expected + ALPHA / 2 * ce * divergence
        assert sums[loss.names.index(f"kl/{stream}_{stream}2")] / len(p) == pytest.approx(
            divergence.item()
        )
    torch.testing.assert_close(total, expected)
    ours, theirs = (
        torch.autograd.grad(x, list(model.parameters()), allow_unused=True)
        for x in (total, expected)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_without_dropout_it_is_the_plain_loss() -> None:
    config, model = objective(r_drop=ALPHA), tiny_model(dropout=0.0)
    found = []
    for settings in (config, objective()):
        loss, made = ObjectiveLoss(settings, VocabShard(24)), batch(settings)
        found.append(TrainingModule(model, loss)(made, per_row(loss, made))[0])
    torch.testing.assert_close(*found)


def test_an_objective_that_writes_its_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='objective "cmlmc" writes a part of its batch'):
        read_config(write_run_config(tmp_path, objective__name="cmlmc", objective__r_drop=1.0))


@pytest.mark.slow
def test_a_run_with_it_on_pipeline_stages_and_shards(tmp_path: Path) -> None:
    config = str(
        write_run_config(tmp_path, objective__r_drop=2.0, model__dropout=0.2, run__max_steps=6)
    )
    found = []
    for layout in (
        Layout("one"),
        Layout("PP2", 2, pipeline=2),
        Layout("TP2", 2, tensor=2),
        Layout("DP2", 2),
    ):
        folder = tmp_path / layout.name
        run_ranks(
            train, layout.ranks, config, [*layout.settings(), f"run.output_dir={folder}"], False
        )
        found.append(losses(folder / "metrics.jsonl"))
    assert found[0][6, "kl/ar_ar2"] > 0 == found[0][6, "left_out_samples"]
    assert found[0][6, "valid/loss/ar2"] == pytest.approx(
        found[0][6, "valid/loss/ar"], rel=1e-6
    )  # no dropout
    for other in found[1:]:  # divergences of a validation are but rounding
        assert other.keys() == found[0].keys()
        assert all(
            value == pytest.approx(found[0][key], rel=1e-4, abs=1e-6)
            for key, value in other.items()
        )
