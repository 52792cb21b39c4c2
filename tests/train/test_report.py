"""Metrics file, progress line and picture."""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from janus_pt.train.report import progress as progress_module
from janus_pt.train.report.metrics_file import (
    MetricsFile,
    metrics_after,
    read_metrics,
)
from janus_pt.train.report.plots import STREAMS, plot_losses
from janus_pt.train.report.progress import ProgressLine
from janus_pt.utils.errors import UserError


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["loss/ar", "loss/nar", "lr"]),
            st.floats(allow_nan=False, allow_infinity=False),
        )
    )
)
def test_records_read_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, contents: list[dict[str, float]]
) -> None:
    file = MetricsFile(tmp_path_factory.mktemp("metrics") / "metrics.jsonl")
    records = [{"step": step, **content} for step, content in enumerate(contents)]
    file.path.touch()
    for record in records:
        file.append(record)
    assert read_metrics(file.path) == records
    assert [json.loads(line) for line in file.path.read_text().splitlines()] == records


def test_every_record_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(3):
        file.append({"step": step})
        assert len(read_metrics(file.path)) == step + 1


def test_not_a_number_is_strict_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1, "loss/ar": math.nan, "grad_norm": math.inf})
    assert file.path.read_text() == '{"step": 1, "loss/ar": null, "grad_norm": null}\n'
    assert math.isnan(read_metrics(file.path)[0]["loss/ar"])


def test_truncate_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.truncate_after(3)
    assert not file.path.exists()
    for step in range(1, 7):
        file.append({"step": step, "loss/ar": 0.1 * step})
        if step % 2 == 0:
            file.append({"step": step, "valid/loss/ar": 0.1})
    before = file.path.read_text()
    with file.path.open("a") as torn:
        torn.write('{"step": 7, "loss/a')
    file.truncate_after(4)
    assert file.path.read_text() == "".join(
        line for line in before.splitlines(True) if int(line[9]) <= 4
    )
    file.append({"step": 5})
    assert [record["step"] for record in read_metrics(file.path)] == [1, 2, 2, 3, 4, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "x"}', "\\xff"])
def test_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is no record"):
        read_metrics(path)


def test_following_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    first, offset = metrics_after(path, 0)
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert [record["step"] for record in first] == [1, 2]
    second, offset = metrics_after(path, offset)
    assert second == [{"step": 3}] and offset == path.stat().st_size
    assert metrics_after(path, offset) == ([], offset)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


RECORD = {
    "step": 20,
    "loss/total": 8.5,
    "loss/ar": 4.25,
    "loss/nar": 5.5,
    "kl/ar_nar": 1.0,
    "lr": 1e-4,
}


def test_progress_on_a_terminal_is_one_line_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 30.0, 45.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    stream = Terminal()
    progress = ProgressLine(100, step=10, stream=stream)
    progress.update({**RECORD, "tokens_per_s": 12345.0, "mfu": 0.312})
    progress.update({**RECORD, "step": 25})
    progress.close()
    lines = [line.strip() for line in stream.getvalue().split("\r") if line.strip()]
    assert (
        lines[0]
        == "step 20/100  total 8.500  ar 4.250  nar 5.500  12.3k tokens/s  MFU 31.2%  ETA 0:04:00"
    )
    assert lines[-1] == "step 25/100  total 8.500  ar 4.250  nar 5.500  ETA 0:03:45"
    assert stream.getvalue().count("\n") <= 1


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = ProgressLine(30, stream=stream)
    for step in range(1, 31):
        now[0] = float(step)
        progress.update({"step": step, "loss/ar": 1.0})
        if step == 15:
            progress.update({"step": step, "valid/loss/ar": 2.0})
    progress.close()
    starts = [line.split("  ") for line in stream.getvalue().splitlines()]
    assert [words[0] for words in starts] == [
        "step 1/30",
        "step 11/30",
        "step 15/30",
        "step 21/30",
        "step 30/30",
    ]
    assert starts[2] == ["step 15/30", "validation", "ar 2.000"] and starts[1][-1] == "ETA 0:00:19"


def test_picture_shows_every_stream(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(0, 100, 10):
        file.append(
            {
                "step": step,
                **{f"loss/{stream}": 5 - step / 50 for stream in STREAMS},
                "loss/total": 5.0,
            }
        )
    file.append({"step": 90, **{f"valid/loss/{stream}": 4.0 for stream in STREAMS}})
    plot_losses(file.path, tmp_path / "loss.png")
    content = (tmp_path / "loss.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1080, 600)
    pixels = (imread(tmp_path / "loss.png")[..., :3] * 255).round().astype(int)
    for _, colour in STREAMS.values():
        assert (pixels == list(bytes.fromhex(colour[1:]))).all(-1).any()
