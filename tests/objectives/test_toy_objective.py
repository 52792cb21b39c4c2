"""A new objective is one module and one row: a toy one goes through all of the program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from janus_pt.checks import read_config
from janus_pt.config.objectives import OBJECTIVES as ROWS
from janus_pt.config.schema import ObjectiveConfig
from janus_pt.inference.janus_model import JanusModel
from janus_pt.objectives.examples import collate_examples, make_example
from janus_pt.objectives.fused_loss import VocabShard
from janus_pt.objectives.loss import ObjectiveLoss, TrainingModule
from janus_pt.objectives.table import OBJECTIVES
from janus_pt.packing.batch import Batch, collate
from janus_pt.packing.example import Example
from janus_pt.packing.slots import POSITION
from janus_pt.utils.errors import UserError
from tests.support import toy_objective
from tests.support.layouts import difference
from tests.support.models import tiny_model
from tests.support.ranks import run_ranks
from tests.support.runs import run_script, write_run_config

NAME = toy_objective.NAME
LENGTHS = (7, 1, 4)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, NAME, toy_objective.ROW)
    monkeypatch.setitem(OBJECTIVES, NAME, toy_objective.OBJECTIVE)


def configuration(r_drop: float = 0.0) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(
        {"name": NAME, "recipe": "translation", "r_drop": r_drop, "length": 0.1}
    )


def texts() -> list[np.ndarray]:
    """Every token is another one, so that a target says which it is."""
    return list(np.split(np.arange(5, 5 + sum(LENGTHS)), np.cumsum(LENGTHS)[:-1]))


def batch(config: ObjectiveConfig) -> Batch:
    model, rng = tiny_model().config, np.random.default_rng(0)
    fields = [{"source": text, "target": text} for text in texts()]
    examples = [make_example(pair, rng, model=model, objective=config) for pair in fields]
    return collate_examples(examples, config)


def test_each_half_is_predicted_at_its_positions() -> None:
    made = batch(configuration())
    rows = made.slots.table[0, made.slots.first_predicting :]
    positions = rows[:, POSITION].tolist()
    found = {}
    for stream, index in made.predict.items():
        count = len(index)
        tokens = made.targets[:count] if stream == "first" else made.targets[-count:]
        found[stream] = {
            (token, positions[slot])
            for token, slot in zip(tokens.tolist(), index.tolist(), strict=True)
        }
    expected: dict[str, set[tuple[int, int]]] = {"first": set(), "last": set()}
    for text in texts():
        for place, token in enumerate(text.tolist()):
            stream = "first" if place < len(text) // 2 else "last"
            expected[stream].add((token, place + 1))
    assert found == expected
    assert len(made.targets) == sum(LENGTHS) + len(LENGTHS), "eos is counted, if not predicted"


@pytest.mark.parametrize("r_drop", [0.0, 2.0])
def test_its_losses_are_those_of_plain_torch(r_drop: float) -> None:
    config, model = configuration(r_drop), tiny_model()
    loss = ObjectiveLoss(config, VocabShard(24))
    made = batch(config)
    coefficients = torch.linspace(0.2, 0.9, len(loss.names), dtype=torch.float64)
    total, sums = TrainingModule(model, loss)(made, coefficients)
    hidden = model(made.source, made.slots)[0].flatten(0, 1)
    found = dict(zip(loss.names, sums.tolist(), strict=True))
    for stream, index in made.predict.items():
        count = len(index)
        targets = made.targets[:count] if "first" in stream else made.targets[-count:]
        expected = F.cross_entropy(
            model.logits(hidden[index]), targets, reduction="sum", label_smoothing=0.1
        )
        assert found[f"loss/{stream}"] == pytest.approx(expected.item())
    assert float(total.detach()) == pytest.approx(float(coefficients @ sums))
    # Both draws are the same without dropout.
    assert all(abs(value) < 1e-9 for name, value in found.items() if name.startswith("kl/"))
    assert ("kl/last_last2" in found) == (r_drop > 0)


def test_streams_in_another_order_than_the_terms_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reversed_streams(*args: object) -> Example:
        made = toy_objective.example(*args)  # type: ignore[arg-type]
        return replace(made, predict=dict(reversed(made.predict.items())))

    monkeypatch.setitem(
        OBJECTIVES, NAME, replace(toy_objective.OBJECTIVE, example=reversed_streams)
    )
    message = (
        f'objective "{NAME}": its examples have the streams last, first, '
        "but its terms have first, last"
    )
    with pytest.raises(ValueError, match=message):
        batch(configuration())


def test_streams_that_are_no_prefixes_of_one_list_are_refused() -> None:
    """In one example stream a predicts more than b, in the other it is the other way round."""
    model, rng = tiny_model().config, np.random.default_rng(0)
    objective = ObjectiveConfig.model_validate({"name": "cmlm", "recipe": "translation"})
    fields = {"source": np.arange(5, 9), "target": np.arange(5, 9)}
    made = make_example(fields, rng, model=model, objective=objective)
    slots = np.arange(2)
    examples = [
        replace(made, predict={"a": slots, "b": slots[:1]}),
        replace(made, predict={"a": slots[:0], "b": slots}),
    ]
    with pytest.raises(ValueError, match="are not a prefix of the batch's targets"):
        collate(examples)


def test_a_configuration_may_name_it(tmp_path: Path) -> None:
    """Its weights are the row's, and a wrong name is answered with the names of all rows."""
    objective = read_config(write_run_config(tmp_path, objective__name=NAME)).objective
    assert (objective.ce_nar, objective.ce_correction, objective.ce_ar) == (1.0, 1.0, 0.0)
    with pytest.raises(UserError, match=f'must be "janus", .* or "{NAME}", but is "half"'):
        read_config(write_run_config(tmp_path, objective__name="half"))


def test_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run_config(tmp_path, objective__name=NAME)
    assert run_script(monkeypatch, "launchers/pretrain.py", "--config", config, "--dry-run") == 0
    assert "memory" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_a_pipeline_of_two_stages_and_decoding(tmp_path: Path) -> None:
    config = write_run_config(
        tmp_path,
        objective__name=NAME,
        data__num_workers=0,
        schedule__warmup_steps=1,
        run__max_steps=2,
        run__eval_every=2,
    )
    for name, ranks in (("one", 1), ("two", 2)):
        settings = [
            f"run.output_dir={tmp_path / name}",
            f"parallel.pipeline_parallel_size={ranks}",
        ]
        run_ranks(toy_objective.train, ranks, str(config), settings, False)
    assert difference(tmp_path / "two", tmp_path / "one") < 1e-5
    model = JanusModel.from_pretrained(tmp_path / "one" / "export")
    written = model.generate(["the slot reads the query"], mode=toy_objective.ROW.modes[0])
    assert len(written) == 1
