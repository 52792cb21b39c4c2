"""`launchers/benchmark.py … --against`: another checkout is measured by turns with this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.runs import ROOT, run_script, write_run_config


def test_a_folder_without_the_launcher_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", "--against", tmp_path)
    assert run_script(monkeypatch, "launchers/benchmark.py", *arguments) == 2
    assert f"--against: {tmp_path} is no checkout" in capsys.readouterr().err


FAKE = """
import json, sys
from pathlib import Path
assert sys.argv[1] == "train" and sys.argv[sys.argv.index("--repeats") + 1] == "1"
numbers = {"step_s": 0.5, "yardstick_step_s": 0.25, "ratio": 2.0, "peak_rss_mb": 100.0}
Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(numbers))
"""


@pytest.mark.slow
def test_the_ratio_is_of_this_step_and_the_other_checkouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other checkout states fixed numbers, so that the ratio is known from this one's."""
    monkeypatch.chdir(ROOT)
    other = tmp_path / "other"
    (other / "launchers").mkdir(parents=True)
    (other / "launchers" / "benchmark.py").write_text(FAKE)
    small = ("--config", write_run_config(tmp_path), "--repeats", 1, "--threads", 1)
    compared = ("--against", other, "--rounds", 2, "--json", tmp_path / "out.json")
    assert run_script(monkeypatch, "launchers/benchmark.py", "train", *small, *compared) == 0
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert set(numbers) == {"step_s", "yardstick_step_s", "ratio", "peak_rss_mb"}
    step = numbers["step_s"]
    assert step["against"] == 0.5 and step["here"] > 0
    assert step["ratio"] == pytest.approx(step["here"] / 0.5)
