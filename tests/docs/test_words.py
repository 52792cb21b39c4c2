"""Code, messages and docs say one thing with one word, the field's (`docs/glossary.md`)."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runs import ROOT

OLD_NAMES = re.compile(
    r"\b(Grids|make_grids|taken_apart|Arrangement|decoder_readings|shared_column|take_memory|"
    r"keep_layers|own_part|whole_tensor|whole_shapes|whole_weights|no_longer_better|check_alike|"
    r"Peers|DivergenceNumbers|block_masks_apply|config_problems|config_trained|config_validation)\b"
)
OLD_PHRASES = re.compile(
    r"\b(that of|those of|left out|leave out|leaves out|is told|are told|was told|were told|"
    r"told of|alike|dearest|dearer|is to be|are to be|was to be|the commonest)\b",
    re.IGNORECASE,
)
CODE = sorted(
    p for room in ("janus_pt", "data_prep", "launchers") for p in (ROOT / room).rglob("*.py")
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and strings of a Python file, with their lines; all lines of a page."""
    text = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), token.start[0])


@pytest.mark.parametrize("path", [*CODE, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_old_words(path: Path) -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}"
        for number, line in prose(path)
        if (match := OLD_PHRASES.search(line))
    ]
    hits += [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := OLD_NAMES.search(line))
    ]
    assert not hits, "\n".join(hits)


def test_the_glossary_has_each_word_once() -> None:
    words = re.findall(r"^- \*\*([^*]+)\*\*", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert len(words) == len(set(words)) > 30
