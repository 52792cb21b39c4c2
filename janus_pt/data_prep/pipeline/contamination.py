"""Documents that share words with a test set.

datatrove's filter finds runs of n words of a test sentence, but none in sentences of fewer, which test sets of
translation are full of, and building its index needs lighteval. Here a shorter sentence counts as a whole.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.text import simplify_text

from janus_pt.data.files import fetch
from janus_pt.data_prep.files import BadLine, TextFile, format_suffix
from janus_pt.data_prep.inputs import json_object, text_field
from janus_pt.data_prep.pipeline.schema import DecontaminationConfig, HeldOutConfig
from janus_pt.data_prep.pipeline.words import UnicodeWords
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, write_atomically

LIST_FOLDER = "contaminated"
"""Folder of the lists of what was removed, in the work folder."""

_WORDS = UnicodeWords()


def _words(text: str) -> list[str]:
    """Lower-cased words without marks and diacritics; numbers count as 0, as in datatrove."""
    return _WORDS.word_tokenize(simplify_text(text))


class ContaminationIndex:
    """The runs of words of all test sentences, by their first words.

    One look-up a word of a document, whatever the lengths of the runs.
    """

    def __init__(self, config: DecontaminationConfig) -> None:
        self._first = min(config.min_words, config.n_grams)
        self._longest = config.n_grams
        self._runs: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
        self.short: dict[str, int] = {}
        """Sentences with fewer than `min_words`, which are not looked for, by test set."""
        for test in config.tests:
            self.short[test.name] = 0
            for sentence in sentences(test):
                self._add(_words(sentence), test.name)

    def _add(self, words: list[str], test: str) -> None:
        if len(words) < self._first:
            self.short[test] += 1
            return
        length = min(self._longest, len(words))
        for start in range(len(words) - length + 1):
            run = tuple(words[start : start + length])
            self._runs.setdefault(run[: self._first], {}).setdefault(run, test)

    def find(self, text: str) -> tuple[str, str] | None:
        """(test set, words) of the first match in a text; None if there is none."""
        words = _words(text)
        for start in range(len(words) - self._first + 1):
            runs = self._runs.get(tuple(words[start : start + self._first]))
            for run, test in (runs or {}).items():
                if tuple(words[start : start + len(run)]) == run:
                    return test, " ".join(run)
        return None


def sentences(test: HeldOutConfig) -> Iterator[str]:
    """Yield the sentences of a test set. `UserError` if it cannot be read or has a bad line."""
    with (
        tempfile.TemporaryDirectory() as folder,
        TextFile(fetch(test.path, Path(folder)), test.path) as file,
    ):
        is_json = format_suffix(test.path) == ".jsonl"
        for number, line in file:
            if isinstance(line, BadLine):
                raise UserError(str(line))
            if not is_json:
                yield line
            elif line.strip():
                try:
                    values = json_object(line)
                    yield from [text_field(values, field) for field in test.fields]
                except ValueError as error:
                    raise UserError(str(BadLine(test.path, number, str(error)))) from None


class DecontaminationFilter(BaseFilter):
    """Removes documents, and pairs, that share a run of words with a test set; every one is listed."""

    name = "decontamination"

    def __init__(
        self, config: DecontaminationConfig, work: str, exclusion_writer: Any = None
    ) -> None:
        super().__init__(exclusion_writer)
        self.config = config
        self.folder = Path(work) / LIST_FOLDER
        self._index: ContaminationIndex | None = None
        self._found: list[list[str]] = []

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the other documents; at their end, write the list."""
        self._index = ContaminationIndex(self.config)
        self._found = []
        yield from super().run(data, rank, world_size)
        make_folder(self.folder)
        write_atomically(self.folder / f"{rank:05d}.json", json.dumps(self._found))

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Keep the document, or the name of the test set as the reason."""
        assert self._index is not None
        match = self._index.find(doc.text) or self._index.find(doc.metadata.get("target", ""))
        if match is None:
            return True
        test, words = match
        doc.metadata["contaminated_by"] = test
        doc.metadata["contaminated_words"] = words
        self._found.append([doc.id, test, words])
        return False, test
