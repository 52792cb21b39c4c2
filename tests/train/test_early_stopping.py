"""Validation by decoding, the best checkpoints, early ends, means of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from janus_pt.checkpoint.average import mean_of, select_checkpoints
from janus_pt.checks import read_config
from janus_pt.config.schema import Config
from janus_pt.tasks.evaluate import evaluate
from janus_pt.train import early_stopping as best
from janus_pt.utils.errors import UserError
from tests.support.layouts import Layout, train
from tests.support.ranks import run_ranks
from tests.support.runs import losses, run_script, write_run_config

EVERY, STEPS, PATIENCE, KEPT = 2, 40, 2, 3
TEXTS = [
    "the slot reads the query",
    "a mask",
    "the query reads a mask and the slot",
    "slot",
    "the mask",
    "a query a slot",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task's data, too."""
    folder = tmp_path_factory.mktemp("best")
    (folder / "dev.src").write_text("".join(f"{text}\n" for text in TEXTS))
    (folder / "dev.tgt").write_text("".join(f"{text}\n" for text in reversed(TEXTS)))
    return folder


def write(folder: Path, **changes: Any) -> Path:
    return write_run_config(folder, data__num_workers=0, checkpoint__every=EVERY, **changes)


def decoding(folder: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "task": "nmt",
        "data": str(folder),
        "mode": "nar",
        "options": {"iterations": 2},
        "metric": "chrf",
    }
    return {f"validation__{key}": value for key, value in {**values, **changes}.items()}


# --- without a run ---------------------------------------------------------------------------------------------------


def recorded(found: list[float], patience: int, keep: int) -> tuple[list[list[int]], int]:
    """What is kept after each validation of a run, and the step at which it ends."""
    limits = SimpleNamespace(patience=patience, eval_every=EVERY)
    checkpoints = SimpleNamespace(keep_best=keep)
    config = SimpleNamespace(
        run=limits, checkpoint=checkpoints, validation=SimpleNamespace(metric="chrf")
    )
    run: Any = SimpleNamespace(config=config, best=[], step=0)
    kept = []
    for value in found:
        run.step += EVERY
        run.validated = {"step": run.step, "loss": 1.0, "chrf": value}
        kept.append(best.record_validation(run))
        if best.out_of_patience(run):
            break
    return kept, run.step


@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, float("nan")]), min_size=1, max_size=12),
    st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_the_best_are_kept_and_patience_ends(found: list[float], patience: int) -> None:
    """Against the definition: a stable sort of all so far; the number of validations behind the earliest best one."""
    kept, end = recorded(found, patience, KEPT)
    for count, steps in enumerate(kept, 1):
        good = [n for n in range(count) if found[n] == found[n]]
        assert steps == [EVERY * (n + 1) for n in sorted(good, key=lambda n: -found[n])[:KEPT]]
        waited = (
            count
            - 1
            - min((n for n in good if found[n] == max(found[m] for m in good)), default=count - 1)
        )
        assert (waited >= patience) == (
            count * EVERY == end and (count < len(found) or waited >= patience)
        )


def test_a_mean_of_models() -> None:
    models = [
        {"a": torch.tensor([x, 1.0]), "b": torch.full((2, 2), 2 * x)} for x in (1.0, 2.0, 6.0)
    ]
    found = dict(mean_of([model.items() for model in models]))
    assert torch.equal(found["a"], torch.tensor([3.0, 1.0])) and torch.equal(
        found["b"], torch.full((2, 2), 6.0)
    )
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert torch.equal(models[0]["a"], torch.tensor([1.0, 1.0]))


def test_too_few_checkpoints(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoints/step_{step}").mkdir(parents=True)
    (tmp_path / "checkpoints/step_4/state.json").write_text(
        json.dumps({"best": {"step": 2, "loss": 1.0}})
    )
    assert [path.name for path in select_checkpoints([tmp_path], last=2)] == ["step_4", "step_2"]
    assert [path.name for path in select_checkpoints([tmp_path], best=1)] == [
        "step_2"
    ]  # as older releases have written it
    for last, wanted, message in (
        (3, None, "keep_last"),
        (None, 2, "keep_best"),
        (0, None, "0 checkpoints are asked"),
    ):
        with pytest.raises(UserError, match=message):
            select_checkpoints([tmp_path], last, wanted)
    with pytest.raises(UserError, match="from one run"):
        select_checkpoints([tmp_path, tmp_path], last=1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"validation__task": "nnt"}, "validation.task: there is no 'nnt'; did you mean nmt?"),
    "mode": ({"validation__mode": "nor"}, "validation.mode: must be one of ar, nar"),
    "metric": (
        {"validation__metric": "rouge"},
        "validation.metric: must be one of bleu, chrf for this task",
    ),
    "falling": ({"validation__metric": "ter"}, "the higher the better, but is 'ter'"),
    "option": (
        {"validation__options": {"beams": 2}},
        'validation.options: beams: mode "nar" has no such option',
    ),
    "two outputs": (
        {"validation__mode": "ar", "validation__options": {"num_return_sequences": 2}},
        "validation.options: num_return_sequences: must be 1 where outputs are scored, but is 2",
    ),
    "mode as option": (
        {"validation__options": {"mode": "ar"}},
        'mode: mode "nar" has no such option',
    ),
    "no corpus": (
        {"data__valid": None, "run__eval_every": 0},
        "validation: needs the validation of the loss",
    ),
    "pipeline": (
        {"parallel__pipeline_parallel_size": 2},
        "validation: decodes with weights that are whole or sharded",
    ),
    "ZeRO-3": ({"parallel__zero_stage": 3}, "but parallel.zero_stage is 3: lower it to 2"),
    "no validation": (
        {"run__patience": 2, "run__eval_every": 0},
        "run.patience: counts validations",
    ),
    "not saved": (
        {"run__patience": 2, "run__eval_every": 3},
        "run.eval_every: must be a multiple of checkpoint.every",
    ),
    "not kept": (
        {"run__patience": 2, "checkpoint__keep_best": 0},
        "checkpoint.keep_best: must be at least 1",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_impossible_settings_are_reported(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_config(write(folder, **{**decoding(folder), **changes}))
    assert message in str(caught.value)


def test_a_number_of_checkpoints_or_whether(tmp_path: Path) -> None:
    """Checkpoints of older releases have `true`."""
    kept = [read_config(write(tmp_path, checkpoint__keep_best=value)) for value in (True, False, 3)]
    assert [config.checkpoint.keep_best for config in kept] == [1, 0, 3]
    assert isinstance(
        Config.model_validate_json(kept[0].model_dump_json()).checkpoint.keep_best, int
    )


# --- runs ------------------------------------------------------------------------------------------------------------


def validations(run: Path, key: str) -> dict[int, float]:
    return {
        int(step): value
        for (step, name), value in losses(run / "metrics.jsonl").items()
        if name == f"valid/{key}"
    }


@pytest.mark.slow
def test_a_run_ends_early_with_its_best_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that is too high. The rule is applied again to the losses in metrics.jsonl; means are made by hand."""
    changes = {
        "run__patience": PATIENCE,
        "run__eval_every": EVERY,
        "run__max_steps": STEPS,
        "optimizer__lr": 0.5,
    }
    config = str(write(folder, checkpoint__keep_best=KEPT, checkpoint__keep_last=1, **changes))
    run = folder / "run"
    run_ranks(train, 1, config, [], False)
    validated = validations(run, "loss/total")
    del validated[0]
    so_far = [{s: value for s, value in validated.items() if s <= step} for step in validated]
    ends = [
        max(seen)
        for seen in so_far
        if max(seen) - min(seen, key=lambda s: seen[s]) >= PATIENCE * EVERY
    ]
    assert max(validated) == ends[0] < STEPS
    ranking = sorted(validated, key=lambda step: validated[step])[:KEPT]
    names = {path.name for path in (run / "checkpoints").glob("step_*")}
    assert names == {f"step_{step}" for step in {*ranking, max(validated)}}

    for step in ranking:
        done = run_script(
            monkeypatch,
            "launchers/convert.py",
            "export",
            run / f"checkpoints/step_{step}",
            "--output",
            folder / str(step),
        )
        assert done == 0
    assert (
        run_script(
            monkeypatch,
            "launchers/convert.py",
            "export",
            run,
            "--best",
            KEPT,
            "--output",
            folder / "mean",
        )
        == 0
    )
    one, *_ = parts = [load_file(folder / str(step) / "model.safetensors") for step in ranking]
    exported, mean = (
        load_file(path / "model.safetensors") for path in (run / "export", folder / "mean")
    )
    for name, weight in one.items():
        assert torch.equal(exported[name], weight)
        torch.testing.assert_close(
            mean[name], torch.stack([part[name].double() for part in parts]).mean(0).float()
        )

    run_ranks(train, 1, config, [], True)  # nothing is left to do
    assert max(validations(run, "loss/total")) == ends[0]
    assert load_file(run / "export/model.safetensors")["embed_tokens.weight"].equal(
        one["embed_tokens.weight"]
    )


LAYOUTS = [
    Layout("one process"), Layout("TP2", 2, tensor=2), Layout("DP2", 2, stage=2), Layout("bfloat16", dtype="bfloat16"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_validation_decodes_as_the_export_does(folder: Path, layout: Layout) -> None:
    changes = {
        "run__eval_every": 4,
        "run__max_steps": 8,
        "checkpoint__keep_last": 9,
        "optimizer__lr": 1e-2,
    }
    config = str(
        write(folder, **changes, **decoding(folder, options={"iterations": 2, "length_beam": 2}))
    )
    run = folder / f"run_{layout.name}"
    run_ranks(train, layout.ranks, config, [*layout.settings(), f"run.output_dir={run}"], False)
    validated = validations(run, "chrf")
    assert list(validated) == [4, 8]
    report = evaluate(
        str(run / "export"), "nmt", str(folder), "dev", ["nar"], str(folder / "report.json"),
        ["nar.iterations=2", "nar.length_beam=2"],
    )  # fmt: skip
    found = report["rows"][0]["metrics"]
    tolerance = 5.0 if layout.dtype == "bfloat16" else 1e-9
    assert validated[8] == pytest.approx(found["chrf"], abs=tolerance) and found["chrf"] > 0
    assert validations(run, "ter")[8] == pytest.approx(found["ter"], abs=100 * tolerance)
    state = json.loads((run / "checkpoints/step_8/state.json").read_text())
    assert state["best"][0]["chrf"] == max(validated.values())


@pytest.mark.slow
def test_a_validation_changes_nothing(folder: Path) -> None:
    """The same run without decoding has the same numbers to the last bit."""
    found = []
    for name, extra in (("with", decoding(folder)), ("without", {})):
        config = json.loads(
            write(
                folder, run__eval_every=4, run__max_steps=8, model__dropout=0.1, **extra
            ).read_text()
        )
        config["run"]["output_dir"] = str(folder / name)
        (folder / f"{name}.json").write_text(json.dumps(config))
        run_ranks(train, 2, str(folder / f"{name}.json"), [], False)
        found.append(losses(folder / name / "metrics.jsonl"))
    decoded = {
        key: value
        for key, value in found[0].items()
        if key[1].split("/")[1:] in (["bleu"], ["chrf"], ["ter"])
    }
    assert len(decoded) == 6 and {**found[1], **decoded} == found[0]
