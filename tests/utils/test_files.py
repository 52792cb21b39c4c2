"""Files and folders that take the place of others: whole, or the old one stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus_pt.utils.errors import UserError
from janus_pt.utils.files import open_atomically, replace_folder, staged_folder, staged_new_folder


def test_a_file_changes_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with open_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), open_atomically(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_changes_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    for content in ("old", "new"):
        with staged_folder(target) as staging:
            (staging / "sub").mkdir()
            (staging / "sub" / "file").write_text(content)
            if content == "new":
                assert (target / "sub" / "file").read_text() == "old"
    assert (target / "sub" / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_what_a_killed_process_left_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".target.partial").mkdir()
    (tmp_path / ".target.partial" / "half").touch()
    with staged_folder(tmp_path / "target") as staging:
        (staging / "file").touch()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["file"]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").touch()
    with pytest.raises(OSError):
        replace_folder(tmp_path / "missing", target)
    assert list(tmp_path.iterdir()) == [target] and (target / "file").exists()


@pytest.mark.parametrize("name", ["file/target", "x" * 300, "x" * 250])
def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match="no folder can be made there")
    with refused, staged_new_folder(tmp_path / name):
        raise AssertionError("there is no folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    refused = pytest.raises(UserError, match="target: cannot be written: No space left on device;")
    with refused, staged_folder(target), open("/dev/full", "wb") as full:
        full.write(b"x")
    assert not list(tmp_path.iterdir())


def test_the_folder_that_one_is_in_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with staged_new_folder(Path(".")) as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["file"]
