"""Gradients that are not finite, on one rank only: all ranks skip the step; it is reported, and can be done again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from janus_pt.train.watch import divergence as numbers
from janus_pt.train.watch.divergence import SPIKE_WINDOW, DivergenceMonitor
from tests.faults.jobs import last_step, latest, run
from tests.support.runs import read_records, write_run_config

LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero 0": ("nan", dict(parallel__zero_stage=0)),
    "zero 0, bfloat16": ("inf", dict(parallel__zero_stage=0, precision__dtype="bfloat16")),
    "zero 1": ("inf", dict(parallel__zero_stage=1)),
    "zero 1, bfloat16": ("nan", dict(parallel__zero_stage=1, precision__dtype="bfloat16")),
    "zero 2": ("nan", dict(parallel__zero_stage=2)),
    "zero 3": ("nan", dict(parallel__zero_stage=3)),
    "tensor": ("nan", dict(parallel__tensor_parallel_size=2)),
    "pipeline": ("inf", dict(parallel__pipeline_parallel_size=2)),
}
"""With the number that is put in: an infinity takes the same way as a NaN."""


def config_of(folder: Path, **changes: Any) -> Path:
    settings = dict(
        run__max_steps=12, run__eval_every=0, data__num_workers=0, checkpoint__every=100
    )
    return write_run_config(folder, **{**settings, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_gradient_on_one_rank_is_skipped_on_all(tmp_path: Path, layout: str) -> None:
    value, settings = LAYOUTS[layout]
    config = config_of(tmp_path, **settings)
    codes, output = run(config, ranks=2, SABOTAGE=f"1:4,7:{value}")
    assert codes == [0, 0], output
    records = {
        int(r["step"]): r for r in read_records(tmp_path / "run/metrics.jsonl") if "loss/ar" in r
    }
    assert [records[step]["left_out_steps"] for step in (3, 4, 6, 7, 12)] == [0, 1, 1, 2, 2]
    assert (
        output.count("loss or gradient is not finite; the step is skipped on all ranks") == 2
        and "Traceback" not in output
    )
    assert all(
        r["loss/total"] is not None and math.isfinite(r["loss/total"]) for r in records.values()
    )
    weights = load_file(tmp_path / "run/export/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    dump = json.loads((tmp_path / "run/dumps/step_4.json").read_text())
    assert (
        dump["step"] == 4
        and dump["samples"]
        and all("shard-000000.tar:" in name for name in dump["samples"])
    )


@pytest.mark.slow
def test_too_many_in_a_row_save_and_stop_and_a_dump_does_the_step_again(tmp_path: Path) -> None:
    config = config_of(tmp_path, run__max_left_out=3, checkpoint__every=4)
    codes, output = run(config, ranks=2, SABOTAGE="1:6,7,8:nan")
    assert (
        codes == [14, 14]
        and "too many steps in a row without a finite gradient: saved after step 8" in output
    )
    assert last_step(tmp_path / "run") == 8 and latest(tmp_path / "run") == "step_8"
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    dump = str(tmp_path / "run/dumps/step_7.json")
    codes, output = run(config, ranks=2, SABOTAGE="1:6,7,8:nan", REPLAY=dump)
    assert codes == [0, 0] and "step 7" in output and "micro-batch 0" in output, output
    shown = next(line for line in output.splitlines() if line.startswith("step 7"))
    loss = next(
        r["loss/total"] for r in read_records(tmp_path / "run/metrics.jsonl") if r["step"] == 7
    )
    assert (
        f"loss/total {loss:.6g}" in shown
    )  # the very step: same weights, same batch, same dropout
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before and latest(
        tmp_path / "run"
    ) == "step_8"
    codes, output = run(config, ranks=2)  # healthy again
    assert codes == [0, 0] and last_step(tmp_path / "run") == 12


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, '{"step": "x", "loader": {}}', "\0"])
def test_a_file_that_is_no_dump_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dump.json").write_text(content)
    codes, output = run(config_of(tmp_path), REPLAY=str(tmp_path / "dump.json"))
    assert codes == [2] and "no dump of a step" in output and "Traceback" not in output


class Loader:
    def samples_of_step(self, state: dict[str, Any]) -> list[str]:
        return [f"shard.tar:{state['batch']}"]


def test_a_spike_of_the_loss_is_reported_and_dumped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(numbers.dist, "get_rank", lambda: 0)
    watch = DivergenceMonitor(tmp_path, Loader(), 3)  # type: ignore[arg-type]
    losses = [5.0 + 0.1 * math.sin(step) for step in range(2 * SPIKE_WINDOW)]
    for step, loss in enumerate([*losses, 9.0, math.nan, 5.05, 20.0]):
        watch.check_loss(step, loss, {"batch": step})
    assert sorted(path.name for path in (tmp_path / "dumps").iterdir()) == [
        "step_100.json",
        "step_103.json",
    ]
    assert json.loads((tmp_path / "dumps/step_100.json").read_text())["samples"] == [
        "shard.tar:100"
    ]
    assert capsys.readouterr().err.count("the loss is") == 2
