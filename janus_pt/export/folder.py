"""An exported model: a folder of `model.safetensors`, `config.json` and a tokenizer.

No pickle anywhere. The tokenizer's file is the one the corpus was built with, `tokenizer.model` or another of
`tokenizer.FILE_NAMES`. A model whose sources have a tokenizer of their own has `source_tokenizer.model`, too.
`README.md` is the model card (`card.py`); nothing depends on it, and older exports have none.

config.json is `config.exported.ExportConfig`. The weights are the unsharded model's, the vocabulary
without padding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from janus_pt.config.exported import CONFIG, EXPORT_AGAIN, ExportConfig, read_export_config
from janus_pt.config.origin import CARD, UNKNOWN_ORIGIN, Origin, read_origin
from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.config.section import Section
from janus_pt.export.card import model_card
from janus_pt.export.checks import check_shapes, check_tokenizers, stored_shapes
from janus_pt.export.stream import write_tensors
from janus_pt.model.meta import assign_weights, build_on_meta, full_shapes
from janus_pt.model.transformer import JanusTransformer
from janus_pt.tokenizer import FOLDER_FILE_NAMES, Tokenizer, load_tokenizer, save_tokenizers
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash, staged_folder

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Export:
    """The content of an export folder; every part has been checked against the others."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizers: list[Tokenizer]
    """The target's; and the source's, if that has one of its own."""
    adapter: AdapterConfig | None = None
    """Which adapters `state` has besides the model's own weights."""
    mlflow_run_id: str | None = None
    origin: Origin = UNKNOWN_ORIGIN
    """What its model card says."""

    def model(self) -> JanusTransformer:
        """The model with these very tensors (no copy), in evaluation mode."""
        # Built without memory of its own: else there would be two models for a moment.
        model = build_on_meta(self.config, self.adapter)
        assign_weights(model, self.state)
        return model.eval()


def save_export(
    directory: str | Path,
    state: Mapping[str, Tensor] | Iterator[tuple[str, Tensor]],
    config: ModelConfig,
    tokenizers: str | Path | Sequence[str | Path | Tokenizer],
    mlflow_run_id: str | None = None,
    origin: Origin = UNKNOWN_ORIGIN,
) -> None:
    """Write an export folder; it appears whole or not at all, and replaces an older export.

    Args:
        directory: created with its parents; if it exists it must be empty or an export.
        state: a state dict of `JanusTransformer(config)`, of any device and floating type, or its
            items one by one, in any order.
        tokenizers: the one, or its file, that the ids of `config` belong to; where sources have
            their own (as with `source_vocab_size`) both, the source's last.
        mlflow_run_id: the run that trained the model.
        origin: for the model card.

    Raises:
        UserError: the parts do not fit each other, or `directory` holds something else.
    """
    given = [tokenizers] if isinstance(tokenizers, str | Path) else tokenizers
    loaded = [item if isinstance(item, Tokenizer) else load_tokenizer(item) for item in given]
    # Before the weights, which may take minutes to gather and write.
    check_tokenizers(loaded, config)
    with staged_export(directory, {CONFIG, WEIGHTS, CARD, *FOLDER_FILE_NAMES}) as folder:
        weights = state.items() if isinstance(state, Mapping) else state
        _write_weights(folder / WEIGHTS, weights, config)
        names = save_tokenizers(folder, loaded)
        hashes = [tokenizer.fingerprint for tokenizer in loaded]
        has_source = len(loaded) > 1
        contents = ExportConfig(
            model=config,
            tokenizer_file=names[0],
            tokenizer_sha256=hashes[0],
            source_tokenizer_file=names[1] if has_source else None,
            source_tokenizer_sha256=hashes[1] if has_source else None,
            model_sha256=file_hash(folder / WEIGHTS),
            mlflow_run_id=mlflow_run_id,
        )
        write_description(folder / CONFIG, contents)
        (folder / CARD).write_text(model_card(config, origin), encoding="utf-8")


@contextmanager
def staged_export(directory: str | Path, names: Set[str]) -> Iterator[Path]:
    """Yield a new folder for the files `names`; it replaces `directory` when the block ends.

    Raises:
        UserError: `directory` exists and holds something else, or no folder can be made there.
    """
    # Resolved: of a link, the folder that it points to is replaced, not the link.
    target = Path(directory).resolve()
    # Unlike Path.exists, False for a name that is too long: then no folder can be made.
    if os.path.exists(target) and not _may_be_replaced(target, names):
        raise UserError(f"{target}: exists and is no exported model; choose another folder")
    with staged_folder(target) as folder:
        yield folder


def _may_be_replaced(folder: Path, names: Set[str]) -> bool:
    """Whether nothing is lost if an export replaces `folder`: it is empty, or an export itself."""
    if not folder.is_dir():
        return False
    existing = {path.name for path in folder.iterdir()}
    # A card alone belongs to anything.
    if not existing <= names or existing == {CARD}:
        return False
    # Names do not suffice: models of other projects have a `config.json`, too.
    if existing and CONFIG in names:
        try:
            read_export_config(folder)
        except (OSError, UserError):
            return False
    return True


def _write_weights(path: Path, items: Iterable[tuple[str, Tensor]], config: ModelConfig) -> None:
    try:
        write_tensors(path, items, full_shapes(config))
    except UserError:
        # Of whoever gives the tensors; it is a ValueError, too.
        raise
    except ValueError as error:
        raise UserError(
            f"the weights to export: tensors do not fit the model in the config: {error}"
        ) from None


def load_export(directory: str | Path) -> Export:
    """Read an export folder.

    Raises:
        UserError: a part is missing, damaged, of another format or version, or does not fit the
            others. Sizes are checked before memory is taken.
    """
    folder = Path(directory)
    contents = read_export_config(folder)
    for name in (WEIGHTS, contents.tokenizer_file):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no exported model here, {name} is missing")
    # The small files first: most mistakes are found before gigabytes are read.
    tokenizers = _load_tokenizers(folder, contents)
    weights = folder / WEIGHTS
    # Shapes before the hash: they are in the header, and their message says more.
    check_shapes(str(weights), stored_shapes(weights), contents.model)
    if file_hash(weights) != contents.model_sha256:
        raise UserError(
            f"{weights}: damaged, its sha256 is not the one in {CONFIG}; {EXPORT_AGAIN}"
        )
    state = load_file(weights)
    run_id, origin = contents.mlflow_run_id, read_origin(folder)
    return Export(contents.model, state, tokenizers, mlflow_run_id=run_id, origin=origin)


def _load_tokenizers(folder: Path, contents: ExportConfig) -> list[Tokenizer]:
    """The target's tokenizer, and the source's if the config has one."""
    tokenizers = []
    for name, expected in contents.tokenizers.items():
        tokenizer = load_tokenizer(folder / name)
        if tokenizer.fingerprint != expected:
            raise UserError(
                f"{folder / name}: not the tokenizer the model was exported with; {EXPORT_AGAIN}"
            )
        tokenizers.append(tokenizer)
    check_tokenizers(tokenizers, contents.model)
    return tokenizers


def write_description(path: Path, content: Section) -> None:
    """Write a folder's description: JSON with sorted keys."""
    text = json.dumps(content.model_dump(mode="json"), indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
