"""The tokenizer of a corpus, trained on an even sample of its clean sentences."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from pathlib import Path

import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from janus_pt.data_prep.blocks import cut_pieces, split_sentences
from janus_pt.data_prep.pipeline.schema import CorpusBuildConfig
from janus_pt.data_prep.pipeline.shard_writer import TOKENIZER_NAME
from janus_pt.data_prep.train_tokenizer import MAX_SENTENCE_CHARACTERS, train
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import make_folder, write_atomically, write_bytes_atomically

FOLDER = "tokenizer_sample"


class SampleWriter(PipelineStep):
    """Ends a stage: keeps the task's share of the sample.

    Kept are the sentences with the smallest hashes, so the choice depends on neither order nor number of the others.
    """

    type = "💽 - WRITER"
    name = "tokenizer sample"

    def __init__(self, config: CorpusBuildConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Write the sample of this task, a sentence a line."""
        budget = self.config.tokenizer.sample_bytes // world_size
        # The largest hash is on top, as heapq has the smallest there: hashes are negative.
        chosen: list[tuple[int, str]] = []
        size = 0
        for sentence in self._sentences(data):
            priority = -xxhash.xxh64_intdigest(sentence)
            if size >= budget and priority <= chosen[0][0]:
                continue
            heapq.heappush(chosen, (priority, sentence))
            size += len(sentence.encode())
            while size > budget and len(chosen) > 1:
                _, dropped = heapq.heappop(chosen)
                size -= len(dropped.encode())
        folder = Path(self.config.work_folder) / FOLDER
        make_folder(folder)
        lines = [sentence for _, sentence in sorted(chosen, reverse=True)]
        write_atomically(folder / f"{rank:05d}.txt", "\n".join(lines))

    def _sentences(self, data: Iterable[Document]) -> Iterable[str]:
        """The sentences of both sides of pairs; SentencePiece reads a line at a time."""
        for document in data:
            for text in (document.text, document.metadata.get("target", "")):
                for sentence in split_sentences(text):
                    for line in sentence.strip().splitlines():
                        yield from filter(str.strip, cut_pieces(line, MAX_SENTENCE_CHARACTERS))


class TokenizerTrainer(PipelineStep):
    """A stage of one task: trains the tokenizer on all samples."""

    type = "🔢 - TOKENIZER"
    name = "training"

    def __init__(self, config: CorpusBuildConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the tokenizer. `UserError` if the text does not suit its size."""
        work = Path(self.config.work_folder)
        sentences: list[str] = []
        for path in sorted((work / FOLDER).glob("*.txt")):
            sentences += path.read_text().split("\n")
        settings = self.config.tokenizer
        try:
            tokenizer = train(filter(None, sentences), settings.vocab_size, settings.model_type)
        except UserError as error:
            raise UserError(str(error).replace("--vocab-size", "tokenizer.vocab_size")) from None
        write_bytes_atomically(work / TOKENIZER_NAME, tokenizer.content)
