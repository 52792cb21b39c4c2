"""Cleaned documents between the stages: one file a task, there whole or not at all.

datatrove's writer makes no file for a task without documents, and writes under the final name; its reader takes a file
that was cut short for a shorter one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from janus_pt.data_prep.files import READ_ERRORS
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, open_atomically
from janus_pt.utils.processes import writer_name

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FOLDER = "documents"


def _path(work: str, rank: int) -> Path:
    return Path(work) / FOLDER / f"{rank:05d}.jsonl.zst"


class DocumentsWriter(PipelineStep):
    """Ends a stage: writes the documents of a task."""

    type = "💽 - WRITER"
    name = "cleaned documents"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Write all documents, then give the file its name."""
        path = _path(self.work, rank)
        make_folder(path.parent)
        # Two attempts at a task may run at the same time, as when a scheduler takes one for dead.
        with (
            open_atomically(path, writer_name()) as raw,
            zstd.ZstdFile(raw, "w") as file,
        ):
            # zstandard makes no frame of nothing, and a file without one reads as damaged.
            file.write(b"\n")
            for document in data:
                self.stat_update("documents")
                row = {"text": document.text, "id": document.id, "metadata": document.metadata}
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


class DocumentsReader(PipelineStep):
    """Begins a stage: the documents that the same task of the cleaning wrote."""

    type = "📖 - READER"
    name = "cleaned documents"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents. `UserError` if the file is missing or damaged."""
        path = _path(self.work, rank)
        try:
            with zstd.ZstdFile(path) as file:
                next(file)
                for line in file:
                    row = orjson.loads(line)
                    self.stat_update("documents")
                    yield Document(row["text"], row["id"], metadata=row["metadata"])
        except (*READ_ERRORS, orjson.JSONDecodeError) as error:
            raise UserError(
                f"{path}: missing or damaged ({error}); build again with --overwrite"
            ) from None
