"""English that lies on every machine with Python: docstrings of its libraries, cleaned of markup and program text."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

SKIPPED_FOLDERS = {"site-packages", "__pycache__", "test", "tests", "testing", "_vendor", "vendor"}
MIN_DENSITY = 0.25
"""Files with a smaller share of long docstrings are not parsed: that is where the time would go."""
MIN_CHARACTERS = 150
MAX_FILE_BYTES = 2**20

_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_LONG_STRING = re.compile(rb'"""(.{150,}?)"""', re.DOTALL)
_UNDERLINE = re.compile(r"^(\s*\S.*?):?[ \t]*\n\s*[-=~^*]{3,}[ \t]*$", re.MULTILINE)
_LAST_SECTIONS = re.compile(
    r"\s*(Examples?|Example usage|References|See Also|Usage)\b.{0,12}$", re.IGNORECASE
)
_MARKUP = (
    (
        re.compile(r":[\w:+-]+:`[~!.]*([^`<]*?)(?:\s*<[^`]*>)?`"),
        r"\1",
    ),  # :class:`~a.b`, :ref:`title <label>`
    (re.compile(r"`+([^`]*)`+_{0,2}"), r"\1"),
    (re.compile(r"(?<!\w)\*\*?(\w[^*\n]*)\*\*?"), r"\1"),
    (re.compile(r"(?m)^\s*:(?:param|type|arg|raises?|returns?|rtype)\b *([^:\n]*):"), r"\1:"),
    (re.compile(r"::(?=\s|$)"), ":"),  # announces a literal block
    (re.compile(r"\s+"), " "),
)


def source_files() -> list[tuple[str, Path]]:
    """(name, path) of the Python files of the standard library and the installed packages.

    Their order is that of their names' hashes, so that the first of them are an even sample of all.
    """
    places = sysconfig.get_paths()
    found = {}
    for root in dict.fromkeys(places[kind] for kind in ("stdlib", "purelib", "platlib")):
        for folder, subfolders, files in os.walk(root):
            subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
            for name in files:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    found[path.relative_to(root).as_posix()] = path
    return sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def documents_of(paths: Iterable[Path]) -> list[list[str]]:
    """`paragraphs` of every docstring with something to say, file by file."""
    return [
        lines
        for path in paths
        for docstring in _docstrings(path)
        if (lines := paragraphs(docstring))
    ]


def paragraphs(docstring: str) -> list[str]:
    """The prose of a docstring, a paragraph a line, the first one being its summary.

    Doctests, literal blocks, tables and directives are left out, as is everything from the examples on; section
    underlines and inline markup are taken away, parameter lists kept.
    """
    text = _UNDERLINE.sub(
        r"\1:", docstring.encode(errors="ignore").decode()
    )  # no halves of surrogate pairs
    lines: list[str] = []
    literal = False
    for block in takewhile(
        lambda block: not _LAST_SECTIONS.match(block.split("\n")[0]), re.split(r"\n\s*\n", text)
    ):
        indented = block.startswith((" ", "\t"))
        if (
            ">>>" in block
            or (literal and indented)
            or block.lstrip().startswith(("..", "+-", "|", "=="))
        ):
            continue
        literal = block.rstrip().endswith("::")
        line = _without_markup(block)
        if is_prose(line):
            lines.append(line)
        elif not lines:
            return []  # the summary is not English
    return lines


def is_prose(line: str) -> bool:
    """Whether most of a line is letters and spaces."""
    return sum(character.isalpha() or character == " " for character in line) > 0.8 * len(line)


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the long docstrings of a file; nothing for files that are not worth it or not Python."""
    try:
        source = path.read_bytes()
        strings = sum(len(found) for found in _LONG_STRING.findall(source))
        if len(source) > MAX_FILE_BYTES or strings < MIN_DENSITY * len(source):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in _definitions(tree):
        docstring = ast.get_docstring(node)
        if docstring and len(docstring) >= MIN_CHARACTERS:
            yield docstring


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    """Yield the module, its classes and functions. Expressions are not walked, which `ast.walk` spends its time on."""
    if isinstance(node, _Definition):
        yield node
    for statement in getattr(node, "body", ()):
        yield from _definitions(statement)
