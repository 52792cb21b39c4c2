"""A corpus's table of contents, `manifest.json`.

A corpus is a folder of plain WebDataset tars (`shard-000000.tar`, members `KEY.FIELD.npy`, token ids without bos
and eos), a sidecar index for each (`shard-000000.idx.npy`), a copy of the tokenizer, and this file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from janus_pt.data import files
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import write_atomically

FORMAT = "janus_pt corpus"
VERSION = 2
FILE_NAME = "manifest.json"
MAX_BYTES = 1 << 27
"""A manifest larger than this is refused before memory is taken; it would list 400,000 shards."""
MAX_SAMPLES = 1 << 22
"""Samples of a shard. A reader permutes the samples of several shards, before it has seen their indices."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""A name in the corpus folder itself: no separators, so that no manifest leads out of it."""
TarName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar$")]
Count = Annotated[int, Field(ge=0, le=1 << 48)]
FieldName = Literal["text", "source", "target"]


class _Entry(BaseModel):
    # Unknown keys are refused: a corpus of a newer release may mean something else by the known ones.
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerEntry(_Entry):
    """The tokenizer file the corpus was made with."""

    file: FileName
    sha256: Sha256
    vocab_size: Annotated[int, Field(gt=0, le=1 << 32)]


class InputFile(_Entry):
    """A file the corpus was made from; not part of the fingerprint."""

    path: str
    sha256: Sha256
    bytes: Count


class Shard(_Entry):
    """One tar and its index."""

    file: TarName
    samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)]
    tokens: dict[FieldName, Count]
    bytes: Count
    sha256: Sha256
    index_sha256: Sha256
    first: Count | None = None
    """The number in its first sample's key, where that is not the number of the samples before it."""
    sources: tuple[Count, ...] | None = None
    """Which of the manifest's `sources` it was made from; None: not recorded."""

    @property
    def index_file(self) -> str:
        """Name of the sidecar index."""
        return self.file.removesuffix(".tar") + ".idx.npy"


class Recipe(_Entry):
    """How a corpus was made from its sources; not part of the fingerprint."""

    settings: dict[str, Any]
    """The part of the build's configuration that decides what is kept: filters, deduplication, and so on."""
    sha256: Sha256
    """Of the settings' canonical JSON."""
    tasks: Annotated[int, Field(gt=0)]
    versions: dict[str, str]
    """Of the libraries that did it."""


class Manifest(_Entry):
    """The whole file. Sums over the shards are checked, so its numbers can be relied on."""

    format: str = FORMAT
    version: int = VERSION
    fields: tuple[Literal["text"]] | tuple[Literal["source"], Literal["target"]]
    dtype: Literal["uint16", "uint32"]
    """Type of the stored token ids."""
    samples: Count
    tokens: dict[FieldName, Count]
    """Stored tokens by field."""
    max_tokens: Annotated[int, Field(gt=0, le=1 << 31)]
    """No field of a sample has more, bos and eos not counted."""
    tokenizer: TokenizerEntry
    source_tokenizer: TokenizerEntry | None = None
    """Tokenizer of the field `source`, if that has its own."""
    sources: tuple[InputFile, ...]
    skipped: Count
    """Bad input lines that were skipped."""
    shards: tuple[Shard, ...]
    recipe: Recipe | None = None
    """What was done to the sources, for all shards."""

    @field_validator("format")
    @classmethod
    def _ours(cls, value: str) -> str:
        if value != FORMAT:
            raise ValueError(f"{value!r} is not {FORMAT!r}")
        return value

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        if value != VERSION:
            raise ValueError(
                f"{value} was written by another release; this one reads version {VERSION}"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        # A manifest may come from anyone; readers allocate memory and index arrays by these numbers.
        largest = max(self.tokenizer_of(name).vocab_size for name in self.fields)
        if (self.dtype == "uint16") != (largest <= 1 << 16):
            raise ValueError(f"dtype {self.dtype} does not fit a vocabulary of {largest}")
        if self.source_tokenizer and "source" not in self.fields:
            raise ValueError("source_tokenizer: there is no field source")
        if len({shard.file for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is listed twice")
        if any(max(shard.sources or (), default=-1) >= len(self.sources) for shard in self.shards):
            raise ValueError("a shard names a source that is not listed")
        if sum(shard.samples for shard in self.shards) != self.samples:
            raise ValueError("samples is not the sum over the shards")
        self._check_tokens()
        return self

    def _check_tokens(self) -> None:
        # Keys first: the sums below look every field up.
        for tokens in (self.tokens, *(shard.tokens for shard in self.shards)):
            if set(tokens) != set(self.fields):
                fields = ", ".join(self.fields)
                raise ValueError(f"tokens must be counted for exactly the fields {fields}")
        for name in self.fields:
            if sum(shard.tokens[name] for shard in self.shards) != self.tokens[name]:
                raise ValueError("tokens is not the sum over the shards")

    @property
    def tokenizers(self) -> list[TokenizerEntry]:
        """The tokenizer; and the tokenizer of the sources, if they have their own."""
        if self.source_tokenizer is None:
            return [self.tokenizer]
        return [self.tokenizer, self.source_tokenizer]

    @property
    def tokenizer_hashes(self) -> list[str]:
        """sha256 of each of the `tokenizers`."""
        return [entry.sha256 for entry in self.tokenizers]

    def tokenizer_of(self, field: str) -> TokenizerEntry:
        """The tokenizer of the token ids in a field."""
        if field == "source" and self.source_tokenizer is not None:
            return self.source_tokenizer
        return self.tokenizer

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the samples: the manifest's canonical JSON without `sources`."""
        # The same corpus built from files at other paths is the same corpus.
        values = self._content(
            exclude={"sources": True, "recipe": True, "shards": {"__all__": {"sources"}}}
        )
        content = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def write(self, folder: str | Path) -> Path:
        """Write `manifest.json` into a local folder; it is there whole or not at all. Returns its path."""
        path = Path(folder) / FILE_NAME
        write_atomically(path, json.dumps(self._content(), sort_keys=True, indent=1) + "\n")
        return path

    def _content(self, **choice: Any) -> dict[str, Any]:
        """JSON values, without optional keys that are not set: older corpora keep their fingerprint."""
        return self.model_dump(mode="json", exclude_none=True, **choice)


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of the corpus in `folder`, a local path or any fsspec URL.

    Raises:
        UserError: there is none, it is not JSON, not ours, of another version, damaged or absurdly large.
    """
    url = files.join(str(folder), FILE_NAME)
    path = files.local_path(url)
    # A message of its own: mostly a mistyped path, or a corpus that is not built yet.
    if path is not None and not path.exists():
        raise UserError(
            f"{folder}: no corpus here ({FILE_NAME} is missing); build one with janus-pt prep build-shards"
        )
    content = files.read_bytes(url, MAX_BYTES)
    try:
        # Strict: no text is taken for a number.
        return Manifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise UserError(
            f"{url}: {_first_problem(error)}; copy or build the corpus again"
        ) from error


def _first_problem(error: ValidationError) -> str:
    """Key and message of the first problem; a damaged file has thousands."""
    problem: Any = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
