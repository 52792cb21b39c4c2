"""The configuration reference in the docs is current and says what every key means."""

from __future__ import annotations

from collections.abc import Iterator

from janus_pt.config.reference import reference, section_of
from janus_pt.config.schema import Config
from janus_pt.config.section import Section
from tests.support.runs import ROOT


def test_the_page_is_made_from_the_schema() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text()
    command = "python -m janus_pt.config.reference > docs/reference/configuration.md"
    assert page == reference(), f"the schema has changed: {command}"


def test_it_has_every_key() -> None:
    page = reference()
    for name, section in sections("", Config):
        part = page[page.index(f"## `{name}`\n") :] if name else page
        for key in section.model_fields:
            assert f"| `{key}` |" in part or f"## `{name}.{key}`".replace("`.", "`") in page


def sections(path: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """All sections with their paths."""
    yield path, section
    for name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            yield from sections(f"{path}.{name}" if path else name, inner)
