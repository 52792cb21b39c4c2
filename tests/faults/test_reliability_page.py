"""docs/reference/reliability.md: every fault has a test, and every test named there exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.runs import ROOT

PAGE = (ROOT / "docs/reference/reliability.md").read_text()
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


@cache
def functions_of(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "test"), REFERENCES)
def test_a_test_that_the_page_names_exists(file: str, test: str) -> None:
    path = ROOT / file if "/" in file else ROOT / "tests/faults" / file
    assert test in functions_of(path)


def test_every_fault_has_a_test() -> None:
    """In the last column: a test, or the one of the row above."""
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.count("|") == 6]
    faults = [row for row in rows if row[0].strip() not in ("fault", "---")]
    assert len(faults) > 60
    for row in faults:
        assert re.search(r"`[\w/]+\.py::test_\w+`|^ the same", row[-1]), row


def test_no_reference_is_written_in_another_way() -> None:
    """Else the first test would not look it up."""
    assert len(re.findall(r"::", PAGE)) == len(re.findall(r"`[\w/]+\.py::\w+`", PAGE))
