"""Real trainings on the rival objectives: same global batches, on one process and on two pipeline stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import launch, losses, write_run_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("ar", ["ar"]),
        ("bang", ["ar", "hidden1", "hidden2"]),
        ("bang_nar", ["nar"]),
        ("cmlmc", ["nar", "corrected"]),
        ("ctc", ["ctc"]),
    ],
)
def test_a_rival_trains_and_reports_its_streams(
    tmp_path: Path, name: str, streams: list[str]
) -> None:
    config = write_run_config(
        tmp_path,
        run__max_steps=12,
        run__eval_every=0,
        objective__name=name,
        objective__bang_streams=3,
    )
    done = launch("pretrain.py", "--config", str(config))
    assert done.returncode == 0, done.stderr
    results = losses(tmp_path / "run" / "metrics.jsonl")
    assert {key for _, key in results if key.startswith("loss/")} == {
        f"loss/{s}" for s in [*streams, "total", "length"]
    }
    for stream in streams:
        assert results[12, f"valid/loss/{stream}"] < results[0, f"valid/loss/{stream}"] - 0.02
    if name in ("ar", "bang_nar"):
        assert results[12, "loss/total"] == pytest.approx(results[12, f"loss/{streams[0]}"]), (
            "no other term is trained on"
        )


def test_an_objective_without_queries_on_pipeline_stages(tmp_path: Path) -> None:
    results = []
    for stages in (1, 2):
        config = write_run_config(
            tmp_path, objective__name="cmlm", model__dropout=0.0, run__max_steps=6
        )
        folder = tmp_path / str(stages)
        changes = (f"run.output_dir={folder}", f"parallel.pipeline_parallel_size={stages}")
        arguments = [part for change in changes for part in ("--set", change)]
        done = launch("pretrain.py", "--config", str(config), *arguments, ranks=stages)
        assert done.returncode == 0, done.stderr
        results.append(losses(folder / "metrics.jsonl"))
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, rel=1e-4), key
