"""What the folders of exported models and of adapters say of themselves: their `config.json` files.

config.json: {"format": "janus_pt model", "version": 1, "model_type": "janus_pt", "model": {ModelConfig},
"tokenizer_file", "tokenizer_sha256", "source_tokenizer_file", "source_tokenizer_sha256", "model_sha256",
"mlflow_run_id"}.

adapter_config.json: {"format": "janus_pt adapter", "version": 1, "base_model_name_or_path",
"base_model_sha256", "adapter": {AdapterConfig}, "adapter_sha256", "mlflow_run_id"}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.config.section import Section
from janus_pt.utils.errors import UserError

FORMAT, ADAPTER_FORMAT = "janus_pt model", "janus_pt adapter"
VERSION, ADAPTER_VERSION = 1, 1
MODEL_TYPE = "janus_pt"
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
EXPORT_AGAIN = "copy or export the model again"

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""A name in the folder itself: no separators, so that no config leads out of it."""
Description = TypeVar("Description", bound=Section)


class ExportConfig(Section):
    """`config.json`."""

    format: str = FORMAT
    version: int = VERSION
    model_type: str = MODEL_TYPE
    """Tells transformers, where janus_pt.hf has been imported, which class loads the folder."""
    model: ModelConfig
    tokenizer_file: FileName = "tokenizer.model"
    tokenizer_sha256: str
    source_tokenizer_file: FileName | None = None
    source_tokenizer_sha256: str | None = None
    model_sha256: str
    mlflow_run_id: str | None = None
    """The run that trained it."""

    @property
    def tokenizers(self) -> dict[str, str]:
        """sha256 by file: the target's tokenizer, and the source's if that has its own."""
        files = {self.tokenizer_file: self.tokenizer_sha256}
        if self.source_tokenizer_sha256:
            # Older exports do not say the names, of SentencePiece models all.
            name = self.source_tokenizer_file or "source_tokenizer.model"
            files[name] = self.source_tokenizer_sha256
        return files


class AdapterExportConfig(Section):
    """`adapter_config.json`."""

    format: str = ADAPTER_FORMAT
    version: int = ADAPTER_VERSION
    base_model_name_or_path: str
    base_model_sha256: str
    adapter: AdapterConfig
    adapter_sha256: str
    mlflow_run_id: str | None = None
    """The run that trained them."""


def read_export_config(directory: str | Path) -> ExportConfig:
    """What an export folder's `config.json` says; raises `UserError` if there is none."""
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise UserError(f"{directory}: no exported model here, {CONFIG} is missing")
    return read_description(path, ExportConfig)


def read_description(path: Path, kind: type[Description]) -> Description:
    """What a folder's description says.

    Raises:
        UserError: it is not JSON, of another `format` or `version` than `kind`'s, or not complete.
    """
    content = _read_json(path)
    # First of all: what is of another format cannot be expected to have our keys.
    expected_format = kind.model_fields["format"].default
    expected_version = kind.model_fields["version"].default
    if content.get("format") != expected_format:
        reason = f'"format" is not "{expected_format}": {_what_it_is(content)}'
        raise UserError(f"{path}: {reason}")
    if content.get("version") != expected_version:
        version = content.get("version")
        raise UserError(
            f"{path}: version {version!r}, this release reads version {expected_version}"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: {key}: {problem['msg']}; {EXPORT_AGAIN}") from error


def _what_it_is(content: dict[str, Any]) -> str:
    """What a description is that is not ours."""
    if "model_type" in content:
        return "a model of Hugging Face comes in with `janus-pt convert huggingface`"
    if "peft_type" in content:
        return "an adapter of peft comes in with `janus-pt convert from-peft`"
    return "this is something else"


def _read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; empty if the file holds something else, which then has no format.

    Raises:
        UserError: it is no JSON, or too large.
    """
    # The size first: a folder from elsewhere may hold anything under this name.
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(
            f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is not an exported model's config"
        )
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {EXPORT_AGAIN}") from error
    return content if isinstance(content, dict) else {}
