"""Every layout trains the same model, resumes bit for bit, and goes on from another's checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.layouts import (
    BFLOAT16,
    LAYOUTS,
    RECOMPUTING,
    SAVED,
    SHARED_ROWS,
    STEPS,
    Comparison,
    Layout,
    difference,
    same_bits,
    train,
)
from tests.support.ranks import free_port, run_ranks
from tests.support.runs import ROOT, environment, launch, read_records

pytestmark = pytest.mark.slow
exhaustive = pytest.mark.exhaustive

ONE, TENSOR, SPREAD = LAYOUTS[0], LAYOUTS[1], LAYOUTS[3]
EACH_AXIS = ("TP2 x PP2", "DP2 x PP2", "DP2 x TP2, ZeRO-3", "DP2, ZeRO-3, offload")
"""Layouts that show every axis and every kind of checkpoint; the others combine them (mark `exhaustive`)."""
FLOAT32, ROUNDING_BFLOAT16 = 1e-5, 5e-3


def combined(layouts: Iterable[Layout], enough: Collection[str] = EACH_AXIS) -> list[Any]:
    """Parameters of a test; layouts that are not in `enough` are marked `exhaustive`."""
    return [
        pytest.param(layout, id=layout.name, marks=[] if layout.name in enough else exhaustive)
        for layout in layouts
    ]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return Comparison(tmp_path_factory.mktemp("layouts"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_computes_what_one_process_does(comparison: Comparison, layout: object) -> None:
    assert difference(comparison.run(layout), comparison.run(ONE)) < FLOAT32
    assert same_bits(comparison.run(layout, layout), comparison.run(layout))


@pytest.mark.parametrize("layout", SHARED_ROWS[:2], ids=lambda layout: layout.name)
def test_ranks_that_share_rows_compute_what_one_process_does(
    comparison: Comparison, layout: object
) -> None:
    assert difference(comparison.run(layout), comparison.run(ONE)) < FLOAT32


@pytest.mark.parametrize("layout", RECOMPUTING, ids=lambda layout: layout.name)
def test_recomputing_a_sublayer_changes_no_bit(comparison: Comparison, layout: object) -> None:
    assert same_bits(comparison.run(layout), comparison.run(TENSOR))


ENOUGH = [
    layout
    for layout in BFLOAT16
    if layout.name.removesuffix(", bfloat16") not in ("TP2", "PP2", "DP2, ZeRO-0")
]


ROUNDED = ("TP2 x PP2, bfloat16", "DP2, ZeRO-3, bfloat16")


@pytest.mark.parametrize("layout", combined(ENOUGH, ROUNDED))
def test_a_layout_computes_the_same_in_bfloat16(comparison: Comparison, layout: object) -> None:
    assert difference(comparison.run(layout), comparison.run(BFLOAT16[0])) < ROUNDING_BFLOAT16
    assert same_bits(comparison.run(layout, layout), comparison.run(layout))


@pytest.mark.parametrize("layout", combined(known for known in LAYOUTS if known.stage > 0))
def test_a_checkpoint_goes_from_any_layout_to_one_process(
    comparison: Comparison, layout: object
) -> None:
    if layout != ONE:
        assert difference(comparison.run(ONE, layout), comparison.run(layout), SAVED) < FLOAT32


@pytest.mark.parametrize("layout", combined(LAYOUTS))
def test_a_checkpoint_goes_from_one_layout_to_any(comparison: Comparison, layout: object) -> None:
    if layout != SPREAD:
        assert difference(comparison.run(layout, SPREAD), comparison.run(SPREAD), SAVED) < FLOAT32


def test_stages_of_one_layer_each_do_not_wait_for_each_other(
    comparison: Comparison, tmp_path: Path
) -> None:
    small = [
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        f"run.output_dir={tmp_path / 'run'}",
    ]
    settings = [*LAYOUTS[2].settings(), *small]
    run_ranks(train, 2, str(comparison.config), settings, False)
    assert (tmp_path / "run" / "export").is_dir()


def test_the_converter_writes_what_the_run_exports(comparison: Comparison, tmp_path: Path) -> None:
    run = comparison.run(SPREAD)
    checkpoint = run / "checkpoints" / f"step_{STEPS}"
    exported = launch("convert.py", "export", str(checkpoint), "--output", str(tmp_path / "model"))
    assert exported.returncode == 0, exported.stderr
    ours, theirs = (
        load_file(f / "model.safetensors") for f in (tmp_path / "model", run / "export")
    )
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)
    converted = launch("convert.py", "checkpoint", str(checkpoint))
    assert converted.stdout.strip() == str(run / "checkpoints" / f"universal_{STEPS}")


def test_what_cannot_be_converted_is_refused_before_anything_is_loaded(
    comparison: Comparison, tmp_path: Path
) -> None:
    origin = comparison.run(LAYOUTS[-1])
    shutil.copytree(origin / "checkpoints", tmp_path / "run" / "checkpoints")
    settings = [
        "--config",
        str(comparison.config),
        "--set",
        f"run.output_dir={tmp_path / 'run'}",
        "--resume",
        "auto",
    ]
    done = launch("pretrain.py", *settings)
    assert (
        done.returncode == 2
        and "parallel.zero_stage 0" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_rank_started_with_another_configuration_is_refused(
    comparison: Comparison, tmp_path: Path
) -> None:
    port, processes = free_port(), []
    for rank in range(2):
        ours = environment() | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        ours |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        call = [
            sys.executable,
            str(ROOT / "launchers/pretrain.py"),
            "--config",
            str(comparison.config),
        ]
        call += ["--set", f"run.output_dir={tmp_path / 'run'}", "--set", f"run.seed={rank}"]
        processes.append(
            subprocess.Popen(call, env=ours, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert (
        "the configuration: not the same on all ranks: 1 differ from 0" in outputs[0]
        and "Traceback" not in outputs[0]
    )


def test_a_batch_that_cannot_fit_is_refused_before_the_first_step(
    comparison: Comparison, tmp_path: Path
) -> None:
    far_too_wide = {
        "model.ffn_hidden_size": 1 << 20,
        "data.micro_batch_size": 1 << 16,
        "data.global_batch_size": 1 << 16,
    }
    settings = [part for key, value in far_too_wide.items() for part in ("--set", f"{key}={value}")]
    settings += ["--set", f"run.output_dir={tmp_path / 'run'}"]
    done = launch("pretrain.py", "--config", str(comparison.config), *settings)
    assert (
        done.returncode == 2
        and "does not fit into memory: lower data.micro_batch_size" in done.stderr
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_validation_and_training_are_reported_once(comparison: Comparison) -> None:
    records = read_records(comparison.run(SPREAD) / "metrics.jsonl")
    assert [r["step"] for r in records if "loss/total" in r] == list(range(1, STEPS + 1))
    assert (
        json.loads((comparison.run(SPREAD) / "config.json").read_text())["parallel"][
            "tensor_parallel_size"
        ]
        == 2
    )
