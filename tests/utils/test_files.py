"""Files and folders that take the place of others: whole, or the old one stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus_pt.utils.files import open_atomically, replace_folder, staged_folder


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
