"""A folder with adapters alone: `adapter_model.safetensors` and `adapter_config.json`.

adapter_config.json is `config.exported.AdapterExportConfig`. The base is an exported model, found
at the path that it names (from this folder, if it is relative) and recognised by the hash of its
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from janus_pt.config.exported import (
    ADAPTER_CONFIG,
    CONFIG,
    AdapterExportConfig,
    read_description,
    read_export_config,
)
from janus_pt.config.origin import CARD, UNKNOWN_ORIGIN, Origin, read_origin
from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.export.card import model_card
from janus_pt.export.checks import stored_shapes
from janus_pt.export.folder import (
    Export,
    load_export,
    staged_export,
    write_description,
)
from janus_pt.export.stream import Shapes
from janus_pt.model.adapters import merged, trained_with
from janus_pt.model.meta import full_shapes
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def save_adapter(
    directory: str | Path,
    state: Mapping[str, Tensor],
    adapter: AdapterConfig,
    base: str | Path,
    mlflow_run_id: str | None = None,
    origin: Origin = UNKNOWN_ORIGIN,
) -> None:
    """Write a folder of adapters; it appears whole or not at all.

    Args:
        directory: if it exists it must be empty or hold adapters.
        state: all that is trained with `adapter`, full tensors.
        base: folder of the exported model they were trained on.
        mlflow_run_id: the run that trained them.
        origin: for the model card.

    Raises:
        UserError: `directory` holds something else, or `base` is no exported model.
    """
    with staged_export(directory, {ADAPTER_WEIGHTS, ADAPTER_CONFIG, CARD}) as folder:
        # safetensors refuses views with gaps.
        contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(contiguous, folder / ADAPTER_WEIGHTS)
        base_config = read_export_config(base)
        content = AdapterExportConfig(
            base_model_name_or_path=str(Path(base).resolve()),
            base_model_sha256=base_config.model_sha256,
            adapter=adapter,
            adapter_sha256=file_hash(folder / ADAPTER_WEIGHTS),
            mlflow_run_id=mlflow_run_id,
        )
        write_description(folder / ADAPTER_CONFIG, content)
        card = model_card(base_config.model, origin, adapter)
        (folder / CARD).write_text(card, encoding="utf-8")


def load_pretrained(directory: str | Path, merge: bool = True) -> Export:
    """Read the folder of an exported model, or of adapters together with their base.

    LoRA's matrices are added to the weights they belong to, unless `merge` is unset; bottlenecks
    stay modules of their own.

    Raises:
        UserError: as `load_export` does; or the base is missing, or another model.
    """
    folder = Path(directory)
    if not (folder / ADAPTER_CONFIG).is_file():
        return load_export(folder)
    config = read_description(folder / ADAPTER_CONFIG, AdapterExportConfig)
    adapter = config.adapter
    base = _load_base(folder, config)
    # Adapters are float32 from training; the base says in which type the model computes.
    dtype = base.state["embed_tokens.weight"].dtype
    weights = {
        name: weight.to(dtype)
        for name, weight in _read_weights(folder, config, base.config).items()
    }
    trained = replace(base, mlflow_run_id=config.mlflow_run_id, origin=read_origin(folder))
    # Bottlenecks are not linear: there is no weight they could be added to.
    if merge and adapter.kind == "lora":
        return replace(trained, state=dict(merged(base.state.items(), weights, adapter)))
    return replace(trained, state={**base.state, **weights}, adapter=adapter)


def trained_shapes(base: ModelConfig, adapter: AdapterConfig) -> Shapes:
    """Names and shapes of all tensors that are trained with `adapter` on a model `base`."""
    shapes = full_shapes(base, adapter)
    return {name: tuple(shape) for name, shape in shapes.items() if trained_with(adapter, name)}


def load_adapter(
    directory: str | Path,
) -> tuple[AdapterExportConfig, ModelConfig, dict[str, Tensor]]:
    """Read a folder of adapters alone: its description, its base's configuration and its tensors.

    Raises:
        UserError: as `load_pretrained` does; or it is no folder of adapters.
    """
    folder = Path(directory)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder}: no adapters here, {ADAPTER_CONFIG} is missing")
    config = read_description(folder / ADAPTER_CONFIG, AdapterExportConfig)
    base = read_export_config(_find_base(folder, config)).model
    return config, base, _read_weights(folder, config, base)


def _load_base(folder: Path, config: AdapterExportConfig) -> Export:
    return load_export(_find_base(folder, config))


def _find_base(folder: Path, config: AdapterExportConfig) -> Path:
    """The folder of the base; it must be the very model the adapters were trained on."""
    base_folder = folder / config.base_model_name_or_path
    if not (base_folder / CONFIG).is_file():
        raise UserError(
            f"{folder}: its base model is not in {base_folder}; put it there, or correct "
            f"base_model_name_or_path in {ADAPTER_CONFIG}"
        )
    # On another base of the same shape adapters would load, and the model would talk nonsense.
    if read_export_config(base_folder).model_sha256 != config.base_model_sha256:
        raise UserError(
            f"{folder}: was trained on another model than the one in {base_folder}; give it its "
            "own base"
        )
    return base_folder


def _read_weights(
    folder: Path, config: AdapterExportConfig, base: ModelConfig
) -> dict[str, Tensor]:
    """The adapters' tensors, refused if they are not what `config` says."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: no adapters here, {ADAPTER_WEIGHTS} is missing")
    # By the header: a file of another model must not be read into memory first.
    if stored_shapes(path) != trained_shapes(base, config.adapter):
        raise UserError(
            f"{path}: its tensors do not fit the adapters in {ADAPTER_CONFIG}; copy both again"
        )
    if file_hash(path) != config.adapter_sha256:
        raise UserError(
            f"{path}: damaged, its sha256 is not the one in {ADAPTER_CONFIG}; copy the folder again"
        )
    return load_file(path)
