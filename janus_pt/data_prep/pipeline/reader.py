"""The first step: from the files of the sources to documents of datatrove."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from janus_pt.data.files import fetch
from janus_pt.data_prep.files import BadLine, fingerprint
from janus_pt.data_prep.pipeline.formats import Record, documents
from janus_pt.data_prep.pipeline.pair_formats import pairs
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.sources import Portion, portions, read_files
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, write_atomically

FOLDER = "read"
"""Folder of what each task read, in the work folder."""


class SourceReader(PipelineStep):
    """Yields the documents of a task.

    datatrove's own readers pass over broken lines, and over the rest of a file that is cut short, with a warning in a
    log file. This one stops the task and names file and line, or counts and lists the line.

    A pair is a document whose text is the source, with `target` and perhaps `score` in its metadata.
    """

    type = "📖 - READER"
    name = "sources"

    def __init__(self, config: CorpusBuildConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the task's documents; at their end, write down what was read.

        Raises:
            UserError: a file cannot be read, or has a bad line and `on_error` is `stop`.
        """
        work = Path(self.config.work_folder)
        read: list[dict[str, Any]] = []
        skipped: list[BadLine] = []
        for portion in portions(read_files(work), rank, world_size):
            yield from self._portion(portion, work, read, skipped)
        folder = work / FOLDER
        make_folder(folder)
        content = {"files": read, "skipped": [line._asdict() for line in skipped]}
        write_atomically(folder / f"{rank:05d}.json", json.dumps(content))

    def _portion(
        self, portion: Portion, work: Path, read: list[dict[str, Any]], skipped: list[BadLine]
    ) -> Iterator[Document]:
        file, part, parts = portion
        source = self.config.sources[file.source]
        names = tuple(url for url in (file.url, file.target_url) if url is not None)
        # Copies of remote files lie beside the results, where there is room, and not in /tmp.
        with tempfile.TemporaryDirectory(prefix="fetched-", dir=work) as folder:
            paths = tuple(fetch(name, Path(folder)) for name in names)
            if self.config.kind == "pairs":
                records = pairs(source, paths, names, part, parts)
            else:
                records = documents(source, paths[0], file.url, part, parts)
            with closing(records):  # type: ignore[type-var]
                for record in records:
                    if isinstance(record, BadLine):
                        self._bad(record, skipped)
                    elif record.text.strip():
                        yield self._document(record, file.url, file.source)
                    else:
                        self.stat_update("empty")
            if part == 0:
                for name, path in zip(names, paths, strict=True):
                    size = path.stat().st_size
                    read.append({"path": name, "sha256": fingerprint(path), "bytes": size})

    def _bad(self, line: BadLine, skipped: list[BadLine]) -> None:
        self.stat_update("bad_lines")
        if self.config.on_error == "stop":
            raise UserError(f'{line} (repair it, or skip bad lines with on_error "skip")')
        skipped.append(line)

    def _document(self, record: Record, url: str, source: int) -> Document:
        document = Document(record.text, f"{url}:{record.line}")
        document.metadata = {**record.metadata, "file": url, "source": source}
        self.stat_update("documents")
        self.update_doc_stats(document)
        return document
