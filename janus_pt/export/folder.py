"""An exported model: a folder of `model.safetensors`, `config.json` and `tokenizer.model`. No pickle anywhere.

A model whose sources have a vocabulary of their own has `source_tokenizer.model`, too.

config.json: {"format": "janus_pt model", "version": 1, "model": {ModelConfig}, "tokenizer_sha256", "model_sha256",
"mlflow_run_id"}. The weights are those of one unsharded model, the vocabulary without padding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from janus_pt.config.schema import AdapterConfig, ModelConfig, Section
from janus_pt.export.checks import check_shapes, check_tokenizers, stored_shapes
from janus_pt.export.stream import write_tensors
from janus_pt.model.meta import assign_weights, build_on_meta, full_shapes
from janus_pt.model.transformer import JanusTransformer
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash, staged_folder

FORMAT = "janus_pt model"
VERSION = 1
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.model"
SOURCE_TOKENIZER = "source_tokenizer.model"
MAX_CONFIG_BYTES = 1 << 20
_AGAIN = "copy or export the model again"
Description = TypeVar("Description", bound=Section)


class ExportConfig(Section):
    """`config.json`."""

    format: str = FORMAT
    version: int = VERSION
    model: ModelConfig
    tokenizer_sha256: str
    source_tokenizer_sha256: str | None = None
    model_sha256: str
    mlflow_run_id: str | None = None
    """The run that trained it."""


@dataclass(frozen=True)
class Export:
    """What a folder holds; every part has been checked against the others."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizers: list[Tokenizer]
    """The target's, and the source's if that has one of its own."""
    adapter: AdapterConfig | None = None
    """What is in `state` besides the model's own weights."""
    mlflow_run_id: str | None = None

    def model(self) -> JanusTransformer:
        """The model with these very tensors (no copy), in evaluation mode."""
        model = build_on_meta(self.config, self.adapter)
        assign_weights(model, self.state)
        return model.eval()


def save_export(
    directory: str | Path,
    state: Mapping[str, Tensor] | Iterator[tuple[str, Tensor]],
    config: ModelConfig,
    tokenizers: str | Path | Sequence[str | Path],
    mlflow_run_id: str | None = None,
) -> None:
    """Write an export folder; it appears whole or not at all, and an older export in its place stays until then.

    Args:
        directory: created with its parents; if it exists it must be empty or an export.
        state: a state dict of `JanusTransformer(config)`, of any device and floating type, or its items one by one.
        tokenizers: the SentencePiece model the ids of `config` belong to; with `source_vocab_size` both, the source's
            last.
        mlflow_run_id: the run that trained the model.

    Raises:
        UserError: the parts do not fit each other, or `directory` holds something else.
    """
    paths = [tokenizers] if isinstance(tokenizers, str | Path) else tokenizers
    loaded = [Tokenizer.load(path) for path in paths]
    check_tokenizers([str(path) for path in paths], loaded, config)

    def fill(folder: Path) -> None:
        items = state.items() if isinstance(state, Mapping) else state
        _write_weights(folder / WEIGHTS, items, config)
        for name, tokenizer in zip((TOKENIZER, SOURCE_TOKENIZER), loaded, strict=False):
            tokenizer.save(folder / name)
        contents = ExportConfig(
            model=config,
            tokenizer_sha256=loaded[0].fingerprint,
            source_tokenizer_sha256=loaded[1].fingerprint if len(loaded) > 1 else None,
            model_sha256=file_hash(folder / WEIGHTS),
            mlflow_run_id=mlflow_run_id,
        )
        text = json.dumps(contents.model_dump(mode="json"), indent=1, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    write_folder(Path(directory), {CONFIG, WEIGHTS, TOKENIZER, SOURCE_TOKENIZER}, fill)


def write_folder(directory: Path, names: Set[str], fill: Callable[[Path], None]) -> None:
    """Have `fill` write the files `names` into a new folder, which takes the place of `directory` when it is whole.

    Raises:
        UserError: `directory` is there and holds something else.
    """
    target = directory.resolve()
    if target.exists() and not _may_be_replaced(target, names):
        raise UserError(f"{target}: exists and is no exported model; choose another folder")
    with staged_folder(target) as folder:
        fill(folder)


def _write_weights(path: Path, items: Iterable[tuple[str, Tensor]], config: ModelConfig) -> None:
    try:
        write_tensors(path, items, full_shapes(config))
    except ValueError as error:
        raise UserError(
            f"the weights to export: tensors are not those of the model in the config: {error}"
        ) from None


def load_export(directory: str | Path) -> Export:
    """Read an export folder.

    Raises:
        UserError: a part is missing, damaged, of another format or version, or does not fit the others. Sizes are
            checked before memory is taken.
    """
    folder = Path(directory)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no exported model here, {name} is missing")
    contents = read_export_config(folder)
    tokenizers = _load_tokenizers(folder, contents)
    check_shapes(str(folder / WEIGHTS), stored_shapes(folder / WEIGHTS), contents.model)
    if file_hash(folder / WEIGHTS) != contents.model_sha256:
        raise UserError(
            f"{folder / WEIGHTS}: damaged, its sha256 is not the one in {CONFIG}; {_AGAIN}"
        )
    return Export(
        contents.model,
        load_file(folder / WEIGHTS),
        tokenizers,
        mlflow_run_id=contents.mlflow_run_id,
    )


def _load_tokenizers(folder: Path, contents: ExportConfig) -> list[Tokenizer]:
    hashes = {TOKENIZER: contents.tokenizer_sha256}
    if contents.source_tokenizer_sha256:
        hashes[SOURCE_TOKENIZER] = contents.source_tokenizer_sha256
    found = [Tokenizer.load(folder / name) for name in hashes]
    for tokenizer, (name, expected) in zip(found, hashes.items(), strict=True):
        if tokenizer.fingerprint != expected:
            raise UserError(
                f"{folder / name}: not the tokenizer the model was exported with; {_AGAIN}"
            )
    check_tokenizers([str(folder / name) for name in hashes], found, contents.model)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """An object in a file of an export, empty if it is something else; `UserError` if it is no JSON or too large."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(
            f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is not an exported model's config"
        )
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {_AGAIN}") from error
    return content if isinstance(content, dict) else {}


def read_export_config(directory: str | Path) -> ExportConfig:
    """What an export folder's `config.json` says; raises `UserError` if there is none."""
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise UserError(f"{directory}: no exported model here, {CONFIG} is missing")
    return read_description(path, ExportConfig)


def read_description(path: Path, kind: type[Description]) -> Description:
    """What a folder's description says; raises `UserError` if it is of another `format` or `version` than `kind`'s."""
    content, expected = (
        _read_json(path),
        {name: kind.model_fields[name].default for name in ("format", "version")},
    )
    if content.get("format") != expected["format"]:
        raise UserError(f'{path}: "format" is not "{expected["format"]}": this is something else')
    if content.get("version") != expected["version"]:
        found = content.get("version")
        raise UserError(
            f"{path}: version {found!r}, this release reads version {expected['version']}"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: {place}: {problem['msg']}; {_AGAIN}") from error


def _may_be_replaced(folder: Path, names: Set[str]) -> bool:
    """Whether nothing is lost if an export takes the place of `folder`: it is empty, or an export itself."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    try:
        ours = not found or CONFIG not in names or bool(read_export_config(folder))
    except (OSError, UserError):
        return False
    return ours and found <= names
