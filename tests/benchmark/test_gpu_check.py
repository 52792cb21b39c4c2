"""The checks of a GPU, tried on a CPU; what fails stops nothing, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from janus_pt.benchmark.gpu_check.layouts import compare_layouts
from janus_pt.benchmark.gpu_check.processes import run_check
from janus_pt.benchmark.gpu_check.report import page, write_report
from janus_pt.benchmark.gpu_check.result import FAILED, NOT_COMPARABLE, PASSED, Result
from janus_pt.benchmark.gpu_check.table import Check, all_checks
from tests.support.runs import run_script

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "devices": 2, "torch": "2.13.0"}
CHECK = Check("a check", "parity", "none:none", {}, 1, 1.0)


def numbers(*losses: float) -> Result:
    return Result(PASSED, numbers={"loss": list(losses), "grad_norm": [1.0]})


def test_layouts_are_compared_with_the_first() -> None:
    results = {
        "1": numbers(2.0, 1.0),
        "same": numbers(2.0, 1.0 + 1e-5),
        "other": numbers(2.0, 1.1),
        "nan": numbers(2.0, float("nan")),
        "crashed": Result(FAILED, "exit code 1"),
    }
    compare_layouts(results)
    assert [result.status for result in results.values()] == [PASSED, PASSED] + [FAILED] * 3
    assert results["other"].message == "differs from one rank by 1.0e-01"
    assert results["crashed"].message == "exit code 1"


def test_without_the_first_nothing_is_compared() -> None:
    results = {"1": Result(FAILED), "other": numbers(1.0)}
    compare_layouts(results)
    assert results["other"].status == NOT_COMPARABLE


def test_more_devices_allow_more_layouts(tmp_path: Path) -> None:
    by_devices = {
        devices: [check for check in all_checks("cuda", devices, tmp_path)] for devices in (1, 2, 8)
    }
    assert all(check.ranks <= devices for devices, checks in by_devices.items() for check in checks)
    assert not any(check.group == "transfers" for check in by_devices[1])
    counts = [sum(check.group == "layouts" for check in checks) for checks in by_devices.values()]
    assert counts == [1, 6, 10]
    for checks in by_devices.values():
        names = [check.name for check in checks]
        assert len(set(names)) == len(names)


def test_the_page_and_the_file_say_the_same(tmp_path: Path) -> None:
    speed = {"step_s": 0.0123, "tokens_per_s": 45678.9, "mfu": 0.4321, "launches": 2750}
    outcomes = [
        (CHECK, Result(FAILED, "rank 0: exit code 1: a | b\nc", seconds=3.0)),
        (CHECK._replace(name="janus_base"), Result(PASSED, "fast", speed, 20.0)),
    ]
    json_path, page_path = write_report(tmp_path, MACHINE, outcomes)
    assert json_path.name == "H100_80GB_HBM3_x2.json" and page_path.stem == json_path.stem
    written = json.loads(json_path.read_text())
    assert [check["status"] for check in written["checks"]] == [FAILED, PASSED]
    assert written["checks"][1]["numbers"] == speed
    text = page_path.read_text()
    assert text == page(MACHINE, outcomes)
    assert "a / b c" in text
    row = next(line for line in text.splitlines() if line.startswith("| janus_base"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "janus_base", "0.0123", "45,679", "43.2%", "2,750",
    ]  # fmt: skip


@pytest.mark.slow
def test_whatever_happens_to_a_check_is_its_result() -> None:
    crashed = run_check("layouts:no_such_function", {}, "cpu", 1, 120)
    assert crashed.status == FAILED and "no attribute 'no_such_function'" in crashed.message
    late = run_check("transfers:transfers", {}, "cpu", 1, 0.5)
    assert late.status == FAILED and "not done after 0.5 s" in late.message


@pytest.mark.slow
def test_the_checks_pass_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity and transfers: what a CPU can be compared with itself in."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["--device", "cpu", "--output", tmp_path]
    code = run_script(
        monkeypatch, "launchers/gpu_check.py", *arguments, "--only", "parity", "--only", "transfers"
    )
    [found] = tmp_path.glob("*.json")
    checks = json.loads(found.read_text())["checks"]
    assert [(check["name"], check["status"]) for check in checks] == [
        ("objectives", "passed"),
        ("transfers", "passed"),
    ], checks
    assert code == 0
    # Float32 on a CPU is what it is compared with.
    assert all(case["float32 gradient"] == 0 for case in checks[0]["numbers"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_script(monkeypatch, "launchers/gpu_check.py", "--output", tmp_path) == 2
    assert "give --device cpu to try the checks" in capsys.readouterr().err
    assert run_script(monkeypatch, "launchers/gpu_check.py", "--device", "cpu", "--gpus", 3) == 2
    assert "--gpus must be from 1 to 2, but is 3" in capsys.readouterr().err
