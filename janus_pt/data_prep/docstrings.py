"""English text that every machine with Python has: docstrings of its libraries, without markup and program text."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

SKIPPED_FOLDERS = {"site-packages", "__pycache__", "test", "tests", "testing", "_vendor", "vendor"}
MIN_DENSITY = 0.25
"""Files with a smaller share of long docstrings are not parsed: they would take most of the time."""
MIN_CHARACTERS = 150
MAX_FILE_BYTES = 2**20
MIN_LETTERS = 0.8
"""Share of letters and spaces in a line of prose."""
MARKUP_STARTS = ("..", "+-", "|", "==")
"""Beginnings of directives and tables."""

_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_LONG_STRING = re.compile(rb'"""(.{150,}?)"""', re.DOTALL)
_UNDERLINE = re.compile(r"^(\s*\S.*?):?[ \t]*\n\s*[-=~^*]{3,}[ \t]*$", re.MULTILINE)
_LAST_SECTIONS = re.compile(
    r"\s*(Examples?|Example usage|References|See Also|Usage)\b.{0,12}$", re.IGNORECASE
)
_MARKUP = (
    # :class:`~a.b`, :ref:`title <label>`
    (re.compile(r":[\w:+-]+:`[~!.]*([^`<]*?)(?:\s*<[^`]*>)?`"), r"\1"),
    # `name`, ``code``, `link`_
    (re.compile(r"`+([^`]*)`+_{0,2}"), r"\1"),
    # *emphasis*, **strong**
    (re.compile(r"(?<!\w)\*\*?(\w[^*\n]*)\*\*?"), r"\1"),
    # :param int name:
    (re.compile(r"(?m)^\s*:(?:param|type|arg|raises?|returns?|rtype)\b *([^:\n]*):"), r"\1:"),
    # A double colon announces a literal block, which is skipped.
    (re.compile(r"::(?=\s|$)"), ":"),
    # Line breaks and indentation, last.
    (re.compile(r"\s+"), " "),
)


def source_files() -> list[tuple[str, Path]]:
    """(name, path) of the Python files of the standard library and the installed packages.

    They are sorted by the hash of their names, so that the first ones are an even sample of all.
    """
    install_paths = sysconfig.get_paths()
    # Two of the folders are often one.
    roots = dict.fromkeys(install_paths[kind] for kind in ("stdlib", "purelib", "platlib"))
    paths = {}
    for root in roots:
        for folder, subfolders, files in os.walk(root):
            # In place: os.walk reads from it which folders to enter.
            subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
            for name in files:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    paths[path.relative_to(root).as_posix()] = path
    return sorted(paths.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def documents_of(paths: Iterable[Path]) -> list[list[str]]:
    """`paragraphs` of every docstring that has any, file by file."""
    documents = []
    for path in paths:
        for docstring in _docstrings(path):
            lines = paragraphs(docstring)
            if lines:
                documents.append(lines)
    return documents


def paragraphs(docstring: str) -> list[str]:
    """The prose of a docstring, a paragraph a line; the first one is its summary.

    Doctests, literal blocks, tables and directives are skipped, and everything from the examples on; section
    underlines and inline markup are removed, parameter lists kept.
    """
    # Without halves of surrogate pairs, which no file can hold.
    text = docstring.encode(errors="ignore").decode()
    text = _UNDERLINE.sub(r"\1:", text)
    lines: list[str] = []
    in_literal = False
    for block in re.split(r"\n\s*\n", text):
        if _LAST_SECTIONS.match(block.split("\n")[0]):
            break
        is_indented = block.startswith((" ", "\t"))
        is_markup = block.lstrip().startswith(MARKUP_STARTS)
        if ">>>" in block or is_markup or (in_literal and is_indented):
            continue
        in_literal = block.rstrip().endswith("::")
        line = _without_markup(block)
        if is_prose(line):
            lines.append(line)
        # Without a summary in English the rest is none, either.
        elif not lines:
            return []
    return lines


def is_prose(line: str) -> bool:
    """Whether most of a line is letters and spaces."""
    letters = sum(character.isalpha() or character == " " for character in line)
    return letters > MIN_LETTERS * len(line)


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the long docstrings of a file; none of a file that has few, or is not Python."""
    try:
        source = path.read_bytes()
        long_strings = sum(len(string) for string in _LONG_STRING.findall(source))
        if len(source) > MAX_FILE_BYTES or long_strings < MIN_DENSITY * len(source):
            return
        with warnings.catch_warnings():
            # Python warns of wrong escape sequences in other people's files.
            warnings.simplefilter("ignore")
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
