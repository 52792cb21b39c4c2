"""The cleaning of documents: the filters of the configuration as steps of datatrove, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter

from janus_pt.data_prep.pipeline.contamination import DecontaminationFilter
from janus_pt.data_prep.pipeline.language import LanguageFilter
from janus_pt.data_prep.pipeline.pair_filters import PairFilter, pair_rules
from janus_pt.data_prep.pipeline.removed import Removed
from janus_pt.data_prep.pipeline.schema import (
    C4Config,
    CorpusBuildConfig,
    FineWebConfig,
    GopherQualityConfig,
    GopherRepetitionConfig,
)
from janus_pt.data_prep.pipeline.words import UnicodeWords

PAGE_SECONDS = 60.0
"""A page whose text cannot be taken from it for so long is dropped. datatrove's default of 1 s would make the corpus
depend on how busy the machine is."""
EMAIL = "email@example.com"
IP = "192.0.2.1"
"""Of the block that is set aside for documentation."""


class PageText(Trafilatura):
    """Takes the text from HTML pages, with trafilatura in a process of its own; other documents pass."""

    name = "page text"

    def __init__(self) -> None:
        # Its `deduplicate` remembers earlier pages: a page's text must not depend on the pages before it.
        super().__init__(timeout=PAGE_SECONDS, deduplicate=False)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents with their texts; pages without text are counted."""
        # Here, too: where it cannot be imported, the other process would end at each page without a word.
        import_module("trafilatura")
        with ExtractorSandbox(self.timeout, warmup_text="") as sandbox:
            for document in data:
                if document.metadata.pop("html", False):
                    document.text = self._text(sandbox, document.text)
                if document.text:
                    yield document

    def _text(self, sandbox: ExtractorSandbox, page: str) -> str:
        """The page's text; empty if it has none, or the library fails on it."""
        try:
            text = sandbox.process_document(page, self.extract)
        except (TimeoutError, EOFError):
            self.stat_update("page_timeout")
            return ""
        # The library fails on some malformed pages, with exceptions of many kinds.
        except Exception:
            self.stat_update("page_error")
            return ""
        self.stat_update("page_text" if text else "page_without_text")
        return text or ""


def cleaning_steps(config: CorpusBuildConfig) -> list[PipelineStep]:
    """The steps between reading and deduplication."""
    steps: list[PipelineStep] = []
    if any(source.format == "warc" for source in config.sources):
        steps.append(PageText())
    if config.kind == "documents":
        steps += _document_filters(config)
    else:
        for name, rule in pair_rules(config.pair_filters):
            steps.append(PairFilter(name, rule, _removed(config, name)))
    if config.decontamination:
        writer = _removed(config, "decontamination")
        steps.append(DecontaminationFilter(config.decontamination, config.work_folder, writer))
    return steps


def _removed(config: CorpusBuildConfig, name: str) -> Removed:
    return Removed(config.work_folder, name, config.removed_samples)


def _document_filters(config: CorpusBuildConfig) -> Iterator[PipelineStep]:
    filters = config.filters
    if filters.language:
        yield LanguageFilter(filters.language, _removed(config, "language"))
    if filters.gopher_repetition:
        yield _gopher_repetition(filters.gopher_repetition, _removed(config, "gopher_repetition"))
    if filters.gopher_quality:
        yield _gopher_quality(filters.gopher_quality, _removed(config, "gopher_quality"))
    if filters.c4:
        yield _c4(filters.c4, _removed(config, "c4"))
    if filters.fineweb:
        yield _fineweb(filters.fineweb, _removed(config, "fineweb"))
    if filters.personal_data:
        yield PIIFormatter(
            remove_emails=filters.personal_data.emails,
            remove_ips=filters.personal_data.ips,
            # datatrove's default takes several in turn: two copies of a document would become different.
            email_replacement=EMAIL,
            ip_replacement=IP,
        )


def _gopher_repetition(config: GopherRepetitionConfig, removed: Removed) -> PipelineStep:
    n_grams: dict[str, Any] = {}
    if not config.n_grams:
        n_grams = {"top_n_grams": (), "dup_n_grams": ()}
    return GopherRepetitionFilter(
        dup_line_frac=config.duplicate_lines,
        dup_para_frac=config.duplicate_paragraphs,
        dup_line_char_frac=config.duplicate_line_characters,
        dup_para_char_frac=config.duplicate_paragraph_characters,
        exclusion_writer=removed,
        language=UnicodeWords(),
        **n_grams,
    )


def _gopher_quality(config: GopherQualityConfig, removed: Removed) -> PipelineStep:
    return GopherQualityFilter(
        min_doc_words=config.min_words,
        max_doc_words=config.max_words,
        min_avg_word_length=config.min_average_word_length,
        max_avg_word_length=config.max_average_word_length,
        max_symbol_word_ratio=config.max_symbol_word_ratio,
        max_bullet_lines_ratio=config.max_bullet_lines,
        max_ellipsis_lines_ratio=config.max_ellipsis_lines,
        max_non_alpha_words_ratio=config.min_alphabetic_words,
        min_stop_words=config.min_stop_words,
        stop_words=list(config.stop_words),
        exclusion_writer=removed,
        language=UnicodeWords(),
    )


def _c4(config: C4Config, removed: Removed) -> PipelineStep:
    return C4QualityFilter(
        exclusion_writer=removed,
        filter_no_terminal_punct=config.terminal_punctuation,
        min_num_sentences=config.min_sentences,
        min_words_per_line=config.min_words_per_line,
        max_word_length=config.max_word_length,
        filter_lorem_ipsum=config.lorem_ipsum,
        filter_javascript=config.javascript,
        filter_curly_bracket=config.curly_bracket,
        filter_policy=config.policy,
        language=UnicodeWords(),
    )


def _fineweb(config: FineWebConfig, removed: Removed) -> PipelineStep:
    return FineWebQualityFilter(
        exclusion_writer=removed,
        line_punct_thr=config.min_punctuated_lines,
        short_line_thr=config.max_short_lines,
        short_line_length=config.short_line,
        char_duplicates_ratio=config.max_duplicate_characters,
        new_line_ratio=config.max_line_breaks,
        language=UnicodeWords(),
    )
