"""Checkpoints that cannot be written, and such as are damaged: training goes on, and nothing wrong is loaded."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from janus_pt.checkpoint import store as checkpoint
from janus_pt.checkpoint.store import FILES, LATEST, prune, seal, verify
from janus_pt.train.report.metrics_file import MetricsFile
from tests.faults.jobs import job, latest, run
from tests.support.runs import losses, write_run_config

STEPS = 40


def write_config(folder: Path) -> Path:
    return write_run_config(folder, run__max_steps=STEPS, run__eval_every=0, data__num_workers=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run of two ranks, with the checkpoints of steps 35 and 40."""
    folder = tmp_path_factory.mktemp("whole")
    codes, output = run(write_config(folder), ranks=2)
    assert codes == [0, 0], output
    return folder


def same_end(folder: Path, whole: Path) -> bool:
    """Whether a run has the same losses and the same model as the unbroken one."""
    ours, theirs = (load_file(path / "run/export/model.safetensors") for path in (folder, whole))
    return losses(folder / "run/metrics.jsonl") == losses(whole / "run/metrics.jsonl") and all(
        torch.equal(ours[name], tensor) for name, tensor in theirs.items()
    )


@pytest.mark.slow
def test_a_full_disk_loses_no_step(tmp_path: Path, whole: Path) -> None:
    """One rank can write no file above 20 kB for a while."""
    with job(write_config(tmp_path), ranks=2) as running:
        metrics = tmp_path / "run/metrics.jsonl"
        running.wait_for_step(metrics, 7)
        pid = running.ranks[1].pid or 0
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        running.wait_for_step(metrics, 18)
        assert latest(tmp_path / "run") in ("step_5", "step_10")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        assert running.wait() == [12, 12]
    output = running.output.read_text()
    assert "step 15 is not saved: rank 1: " in output and "Traceback" not in output
    assert (
        latest(tmp_path / "run") == f"step_{STEPS}"
        and verify(tmp_path / f"run/checkpoints/step_{STEPS}") is None
    )
    assert same_end(tmp_path, whole)
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_folder_that_takes_no_checkpoint_ends_no_training(tmp_path: Path, whole: Path) -> None:
    """In /proc nobody may make a folder, the superuser neither."""
    config = write_config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to("/proc/sys")
    codes, output = run(config, ranks=2)
    assert (
        codes == [12, 12]
        and output.count("is not saved") == STEPS // 5
        and "Traceback" not in output
    )
    assert same_end(tmp_path, whole)


def flip(folder: Path) -> None:
    path = folder / "mp_rank_00_model_states.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(folder: Path) -> None:
    path = next(folder.glob("*optim_states.pt"))
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_file(folder: Path) -> None:
    next(folder.glob("*optim_states.pt")).unlink()


def lose_the_list(folder: Path) -> None:
    (folder / FILES).unlink()


def lose_all(folder: Path) -> None:
    shutil.rmtree(folder)


def wrong_latest(folder: Path) -> None:
    (folder.parent / LATEST).write_bytes(b"\xff\x00nonsense")
    lose_all(folder)


DAMAGES = [flip, cut, lose_a_file, lose_the_list, lose_all, wrong_latest]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_used(
    tmp_path: Path, whole: Path
) -> None:
    for damage in DAMAGES:
        folder = tmp_path / damage.__name__
        shutil.copytree(whole / "run", folder / "run")
        shutil.rmtree(folder / "run/export")
        for name in ("corpus", "valid"):
            shutil.copytree(whole / name, folder / name)
        damage(folder / "run/checkpoints" / f"step_{STEPS}")
        codes, output = run(write_config(folder), ranks=2)
        assert codes == [0, 0], output
        expected = "latest: missing or broken" if damage is wrong_latest else "step_35 instead"
        assert (
            f"warning: {folder}" in output and expected in output and "Traceback" not in output
        ), damage
        assert same_end(folder, whole), damage


@pytest.mark.slow
def test_no_whole_checkpoint_is_an_error_not_a_new_start(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    for folder in (tmp_path / "run/checkpoints").glob("step_*"):
        flip(folder)
    config = write_config(tmp_path)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    codes, output = run(config, ranks=2)
    assert (
        codes == [2, 2]
        and output.count("error: ") == 1
        and "is whole" in output
        and "Traceback" not in output
    )
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_model_that_is_not_the_one_saved_is_refused_though_its_files_are_whole(
    tmp_path: Path, whole: Path
) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    folder = tmp_path / f"run/checkpoints/step_{STEPS}"
    state = json.loads((folder / "state.json").read_text())
    state["fingerprint"] *= 1.01
    (folder / "state.json").write_text(json.dumps(state))
    (folder / FILES).unlink()
    seal(folder)
    codes, output = run(write_config(tmp_path), ranks=2)
    assert codes == [2, 2] and "its files are whole, but the model loaded from them" in output


def make_checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step_{step}"
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"step": step}))
    (path / "weights.pt").write_bytes(bytes(range(200)))
    seal(path)
    return path


def test_the_quick_check_sees_sizes_and_the_full_one_every_bit(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    assert verify(path) is None and verify(path, quick=True) is None
    (path / "weights.pt").write_bytes(bytes(200))
    assert verify(path, quick=True) is None and "weights.pt: damaged" in str(verify(path))
    (path / "weights.pt").write_bytes(bytes(199))
    assert "weights.pt: missing or cut short" in str(verify(path, quick=True))


def test_the_parts_of_a_check_are_the_whole(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    (path / "weights.pt").write_bytes(bytes(200))
    found = [verify(path, part=part, parts=2) for part in range(2)]
    assert [problem is None for problem in found].count(False) == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "[1]", '{"weights.pt": 3}', '{"weights.pt": {}}', "\0", "null", "1"]
)
def test_a_broken_list_of_files_is_an_incomplete_checkpoint(tmp_path: Path, content: str) -> None:
    path = make_checkpoint(tmp_path, 1)
    (path / FILES).write_text(content)
    assert verify(path) is not None


def test_a_file_that_is_not_listed_is_not_loaded(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    (path / "mp_rank_01_model_states.pt").write_bytes(b"from elsewhere")
    assert "mp_rank_01_model_states.pt: not a file of this checkpoint" in str(verify(path))


def break_list(path: Path) -> None:
    (path / FILES).unlink()


@pytest.mark.parametrize(
    ("damaged", "best", "left"),
    [
        ([], [], [30, 40]),
        ([], [10], [10, 30, 40]),
        ([], [20, 10], [10, 20, 30, 40]),
        ([40], [], [20, 30, 40]),
        ([30, 40], [10], [10, 20, 30, 40]),
    ],
)
def test_retention_counts_only_complete_checkpoints(
    tmp_path: Path, damaged: list[int], best: list[int], left: list[int]
) -> None:
    for step in (10, 20, 30, 40):
        make_checkpoint(tmp_path, step)
    for step in damaged:
        break_list(tmp_path / f"step_{step}")
    prune(tmp_path, 2, best)
    assert checkpoint.steps_in(tmp_path) == left


def test_retention_never_removes_the_only_whole_one(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        make_checkpoint(tmp_path, step)
    for step in (20, 30):
        break_list(tmp_path / f"step_{step}")
    prune(tmp_path, 1, [])
    assert (tmp_path / "step_10" / FILES).exists()


def test_metrics_that_the_disk_does_not_take_are_written_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    records = [{"step": step, "loss/ar": 1 / step} for step in range(1, 21)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    try:
        for number, record in enumerate(records):
            limited(150 if 5 <= number < 15 else soft)
            metrics.append(record)
    finally:
        limited(soft)
    assert [json.loads(line) for line in metrics.path.read_text().splitlines()] == records
    assert capsys.readouterr().err.count("cannot be written") == 1
