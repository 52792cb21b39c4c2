"""The configuration of a corpus, one JSON file: sources, filters, deduplication, decontamination, tokenizer, shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from janus_pt.config.messages import Problem
from janus_pt.config.section import Count, Positive, Section, Share
from janus_pt.data_prep.build_shards import MIN_TOKENS

Strings = Annotated[tuple[str, ...], Field(strict=False)]
NonEmpty = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Ratio = Annotated[float, Field(ge=1.0)]

DOCUMENT_FORMATS = ("jsonl", "parquet", "text", "warc")
PAIR_FORMATS = ("jsonl", "parquet", "tsv", "tmx", "moses")


class SourceConfig(Section):
    """Files of one origin."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Its name in reports."""
    path: str
    """A file, or a pattern with `*` and `**`: a local path or any fsspec URL. Files are taken in the order of names."""
    format: Literal["jsonl", "parquet", "text", "warc", "tsv", "tmx", "moses"]
    """`text`: a blank line ends a document. `warc`: crawled pages, whose text is extracted, or the texts of a WET
    file. `moses`: source sentences, one a line, with the targets in `target_path`."""
    field: str = "text"
    """Field or column of a document's text."""
    source_field: str = "source"
    """Field or column of a pair's source: a key of jsonl, a column of parquet, the language code of TMX."""
    target_field: str = "target"
    """Field or column of a pair's target."""
    score_field: str | None = None
    """Field or column of a pair's alignment score; of a `tsv` file the number of the column, counted from 0."""
    source_column: Count = 0
    """Column of a `tsv` file, counted from 0."""
    target_column: Count = 1
    target_path: str | None = None
    """`moses`: the target sentences; a pattern must match as many files as `path`."""


class LanguageConfig(Section):
    """Language identification by fastText's compressed model lid.176, which a package brings along."""

    keep: NonEmpty
    """ISO 639-1 codes of the documents that stay."""
    threshold: Share = 0.65
    """Least probability of one of them; 0.65 as in FineWeb."""


class GopherQualityConfig(Section):
    """Rules of Gopher (Rae et al. 2021) for a document. Defaults as in datatrove."""

    min_words: Count = 50
    max_words: Positive = 100_000
    min_average_word_length: float = 3.0
    max_average_word_length: float = 10.0
    max_symbol_word_ratio: Share = 0.1
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    min_alphabetic_words: Share = 0.8
    min_stop_words: Count = 2
    stop_words: Strings = ("the", "be", "to", "of", "and", "that", "have", "with")
    """English; a corpus of another language needs its own, or `min_stop_words` 0."""


class GopherRepetitionConfig(Section):
    """Rules of Gopher for repeated lines, paragraphs and n-grams. Defaults as in datatrove."""

    duplicate_lines: Share = 0.3
    duplicate_paragraphs: Share = 0.3
    duplicate_line_characters: Share = 0.2
    duplicate_paragraph_characters: Share = 0.2
    n_grams: bool = True
    """The shares of repeated n-grams, n from 2 to 10, of table A1."""


class C4Config(Section):
    """Rules of C4 (Raffel et al. 2020): lines without a full stop go, then documents of few sentences."""

    min_sentences: Count = 5
    min_words_per_line: Count = 3
    max_word_length: Positive = 1000
    terminal_punctuation: bool = True
    javascript: bool = True
    """Lines that mention javascript go."""
    policy: bool = True
    """Lines about cookies and terms of use go."""
    curly_bracket: bool = True
    """Documents with a curly bracket go."""
    lorem_ipsum: bool = True


class FineWebConfig(Section):
    """Rules of FineWeb (Penedo et al. 2024). Defaults as in datatrove."""

    min_punctuated_lines: Share = 0.12
    max_short_lines: Share = 0.67
    short_line: Positive = 30
    """Characters of a short line."""
    max_duplicate_characters: Share = 0.01
    max_line_breaks: float = 0.3
    """Line breaks for each word."""


class PersonalDataConfig(Section):
    """E-mail and public IP addresses are replaced, always by the same text: copies of a document stay copies."""

    emails: bool = True
    ips: bool = True


class DocumentFilters(Section):
    """What is removed from documents, in this order. A filter that is not named is not used."""

    language: LanguageConfig | None = None
    gopher_repetition: GopherRepetitionConfig | None = None
    gopher_quality: GopherQualityConfig | None = None
    c4: C4Config | None = None
    fineweb: FineWebConfig | None = None
    personal_data: PersonalDataConfig | None = None


class PairFilters(Section):
    """What is removed from sentence pairs, in this order. A filter that is not named is not used."""

    max_words: Positive | None = None
    """Most words of a side."""
    max_length_ratio: Ratio | None = None
    """Most times that one side may have the other's characters; sides below 20 characters are not compared."""
    source_language: LanguageConfig | None = None
    target_language: LanguageConfig | None = None
    max_overlap: Share | None = None
    """Most of the target's words that may stand in the source: 1 or more of them copies."""
    source_script: str | None = None
    """Unicode script of the letters, as `Latin`, `Cyrillic`, `Han`: most of a side's letters must be of it."""
    target_script: str | None = None
    numbers: bool = False
    """Numbers of two or more digits must be the same on both sides."""
    punctuation: bool = False
    """The last mark must be of one kind on both sides: a question, an exclamation, or neither."""
    min_score: float | None = None
    """Least alignment score; a pair without a score is removed."""


class MinhashSection(Section):
    """Near duplicates by MinHash, datatrove's. Of each group that is found one document stays."""

    n_grams: Positive = 5
    """Words of a shingle. A document with fewer has no signature and always stays."""
    buckets: Positive = 20
    hashes_per_bucket: Positive = 8
    """A pair of Jaccard similarity s is found with probability 1 - (1 - s^hashes)^buckets."""
    seed: Count = 1
    numbers_as_zero: bool = True
    """Every number counts as 0, datatrove's default: tables and score lists become duplicates of one another."""


class DeduplicationConfig(Section):
    """Duplicates within the corpus."""

    exact: Annotated[
        tuple[Literal["text", "pair", "source", "target"], ...], Field(strict=False)
    ] = ()
    """What must not come twice: `text` of documents; `pair`, `source` or `target` of pairs."""
    minhash: MinhashSection | None = None


class HeldOutConfig(Section):
    """A test file, whose sentences must not be in the corpus."""

    name: str
    path: str
    """A text file with a sentence a line, or .jsonl; also .gz, .xz or .zst; a local path or any fsspec URL."""
    fields: Strings = ("text",)
    """Fields of a .jsonl file to look at."""


class DecontaminationConfig(Section):
    """Documents that share words with a test set are removed."""

    tests: Annotated[tuple[HeldOutConfig, ...], Field(min_length=1, strict=False)]
    n_grams: Positive = 13
    """Words in a row, lower-cased and without punctuation, that make a match; 13 as for GPT-3."""
    min_words: Positive = 5
    """A shorter test sentence than `n_grams` matches as a whole; one of fewer words than this does not match."""


class TokenizerConfig(Section):
    """The tokenizer of the corpus: a file, or one that is trained on a sample of the cleaned text."""

    path: str | None = None
    """A tokenizer of `janus-pt prep train-tokenizer`, of an export, or a tokenizer.json."""
    vocab_size: Positive = 32_000
    """For training, without `path`."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    sample_bytes: Positive = 20_000_000


class ShardsConfig(Section):
    """What a shard holds; see `janus-pt prep build-shards`."""

    max_tokens: Annotated[int, Field(ge=MIN_TOKENS)] = 510
    samples_per_shard: Positive = 8192


class SlurmConfig(Section):
    """What `sbatch` needs to know."""

    partition: str = "cpu"
    time: str = "24:00:00"
    """Limit for one task."""
    memory_gb: Positive = 4
    qos: str | None = None
    setup: str | None = None
    """Shell command that makes the same environment on a node; default: this Python's."""
    max_array_size: Positive = 1001
    """Slurm's MaxArraySize: more tasks become several arrays."""
    arguments: dict[str, str] = Field(default_factory=dict)
    """More `#SBATCH --KEY=VALUE` lines."""


class RayConfig(Section):
    """What a task asks of a Ray cluster."""

    address: str = "auto"
    memory_gb: Annotated[float, Field(gt=0)] = 2.0


class CorpusBuildConfig(Section):
    """A corpus of documents, or of sentence pairs."""

    output: str
    """Folder of the corpus, on a file system that all nodes share."""
    work: str | None = None
    """Folder of intermediate files, logs and reports; default: `output` with `.build` behind it."""
    kind: Literal["documents", "pairs"] = "documents"
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1, strict=False)]
    tasks: Positive = 1
    """Parts of the work. Once a build has begun its number of tasks cannot change."""
    on_error: Literal["stop", "skip"] = "stop"
    """A bad line stops its task, or is skipped, counted and listed. A damaged file always stops its task."""
    filters: DocumentFilters = DocumentFilters()
    pair_filters: PairFilters = PairFilters()
    deduplication: DeduplicationConfig = DeduplicationConfig()
    decontamination: DecontaminationConfig | None = None
    tokenizer: TokenizerConfig = TokenizerConfig()
    source_tokenizer: str | None = None
    """Tokenizer of the sources of pairs, if they have their own."""
    shards: ShardsConfig = ShardsConfig()
    removed_samples: Count = 20
    """Texts kept of each task and reason, for `report.html`."""
    slurm: SlurmConfig = SlurmConfig()
    ray: RayConfig = RayConfig()

    @property
    def work_folder(self) -> str:
        """Folder of intermediate files."""
        return self.work or self.output.rstrip("/") + ".build"

    def recipe(self) -> dict[str, Any]:
        """Everything that decides which samples there are, but for the sources' content and the number of tasks."""
        names = {
            "kind", "on_error", "filters", "pair_filters", "deduplication", "decontamination", "shards", "tokenizer",
        }  # fmt: skip
        return self.model_dump(mode="json", include=names, exclude_none=True)


def problems(config: CorpusBuildConfig) -> Iterator[Problem]:
    """What the keys of a valid file say together and cannot mean."""
    of_pairs = config.kind == "pairs"
    formats = PAIR_FORMATS if of_pairs else DOCUMENT_FORMATS
    for index, source in enumerate(config.sources):
        place = ("sources", index)
        if source.format not in formats:
            yield (*place, "format"), f"{config.kind} come from {', '.join(formats)}"
        if (source.format == "moses") != (source.target_path is not None):
            yield (*place, "target_path"), "goes with format moses, which needs it"
    names = [source.name for source in config.sources]
    if len(set(names)) != len(names):
        yield ("sources",), "two sources have one name: give each its own"
    yield from _problems_of_kind(config, of_pairs)
    if config.work_folder.rstrip("/") == config.output.rstrip("/"):
        yield ("work",), "must be another folder than output"


def _problems_of_kind(config: CorpusBuildConfig, of_pairs: bool) -> Iterator[Problem]:
    """Keys that belong to the other kind of corpus."""
    allowed = {"pair", "source", "target"} if of_pairs else {"text"}
    if wrong := [key for key in config.deduplication.exact if key not in allowed]:
        yield (
            ("deduplication", "exact"),
            f"{config.kind} have no {wrong[0]}: use {', '.join(sorted(allowed))}",
        )
    if of_pairs:
        if config.filters != DocumentFilters():
            yield ("filters",), "are for documents: use pair_filters"
        if config.deduplication.minhash:
            yield ("deduplication", "minhash"), "is for documents: use exact"
        return
    if config.pair_filters != PairFilters():
        yield ("pair_filters",), "are for pairs: use filters, or kind pairs"
    if config.source_tokenizer:
        yield ("source_tokenizer",), "is for pairs: remove it"
