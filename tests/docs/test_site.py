"""The site of the documentation is built without warnings, and its pages fetch nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import ROOT

pytestmark = pytest.mark.slow

FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc="?(?:https?:)?//"""
    r"""|<link\b[^>]*\brel="?(?:stylesheet|preconnect|preload)"?[^>]*\bhref="?(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//"""
)
"""What a browser loads by itself, from another host."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # `strict` in mkdocs.yml makes every warning an error.
    call = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        address = page.relative_to(ROOT / "docs").with_suffix("")
        assert address.name == "index" or f'href="{address}/"' in start, address


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(files) > 20
    assert [str(file) for file in files if FETCHED.search(file.read_text())] == []
    assert FETCHED.search('<link rel="stylesheet" href="https://fonts.googleapis.com/css">')


def test_the_reference_has_the_docstrings_and_the_keys(site: Path) -> None:
    page = (site / "reference" / "python" / "index.html").read_text()
    assert "Load an exported model, or adapters and their base, for decoding." in page
    assert "length_penalty" in page
    assert "ffn_hidden_size" in (site / "reference" / "configuration" / "index.html").read_text()
