"""Tables, suggestions, lines of text files, locks."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from janus_pt.utils.errors import UserError
from janus_pt.utils.files import exclusive_folder
from janus_pt.utils.suggest import did_you_mean, nearest
from janus_pt.utils.tables import format_table
from janus_pt.utils.text_files import decode_lines, read_lines

ROWS = [["janus", "0.50", "1,000"], ["ar", "10.25", "2"]]


def test_a_table_keeps_the_digits_it_is_given() -> None:
    assert format_table(ROWS, ["mode", "bleu", "tokens"]).split("\n") == [
        "mode      bleu    tokens",
        "janus     0.50     1,000",
        "ar       10.25         2",
    ]
    assert format_table(ROWS, align="lrl") == "janus   0.50  1,000\nar     10.25  2"


def test_a_markdown_table_has_aligned_columns() -> None:
    assert format_table(ROWS, ["mode", "bleu", "tokens"], markdown=True).split("\n") == [
        "| mode   |   bleu |   tokens |",
        "|:-------|-------:|---------:|",
        "| janus  |   0.50 |    1,000 |",
        "| ar     |  10.25 |        2 |",
    ]


def test_a_table_without_rows_is_its_headers() -> None:
    assert format_table([], ["mode", "bleu"]) == "mode    bleu"


def test_the_nearest_name_is_suggested_and_nothing_if_none_is_near() -> None:
    assert nearest("jnus", ["ar", "janus"]) == "janus"
    assert nearest("zzz", ["ar", "janus"]) is None
    assert did_you_mean("jnus", {"janus": 1}) == "did you mean janus? "
    assert did_you_mean("zzz", {"janus": 1}) == ""


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_lose_their_ends_and_nothing_else(tmp_path: Path, name: str) -> None:
    content = "\ufeff one \r\n\n\u2028two\x0b\r\r\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_lines(tmp_path / "a.txt") == [" one ", "", "\u2028two\x0b\r"]


def test_a_line_that_is_not_utf8_is_named() -> None:
    lines = decode_lines([b"one\n", b"t\xffo"], "a.txt")
    assert next(lines) == "one"
    with pytest.raises(UserError, match=r"a\.txt, line 2: not valid UTF-8"):
        next(lines)


HOLD = """
import subprocess, sys
from pathlib import Path
from janus_pt.utils.files import exclusive_folder
with exclusive_folder(Path(sys.argv[1]), "waiting") as lock:
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,), stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_until_the_last_process_with_the_lock_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "new")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    child = int(first.stdout.readline())
    second = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    assert second.stdout.readline() == "waiting\n"
    first.communicate("")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    os.kill(child, 9)
    other_child = int(second.stdout.readline())
    os.kill(other_child, 9)
    second.communicate("")
    with exclusive_folder(tmp_path / "new"):
        pass
