"""A folder with adapters alone: `adapter_model.safetensors` and `adapter_config.json`, which names their base.

adapter_config.json: {"format": "janus_pt adapter", "version": 1, "base_model_name_or_path", "base_model_sha256",
"adapter": {AdapterConfig}, "adapter_sha256", "mlflow_run_id"}. The base is an exported model, found at that path (from
this folder, if it is relative) and recognised by the hash of its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from janus_pt.config.schema import AdapterConfig, Section
from janus_pt.export.checks import stored_shapes
from janus_pt.export.folder import (
    CONFIG,
    Export,
    load_export,
    read_description,
    read_export_config,
    write_folder,
)
from janus_pt.model.adapters import merged, trained_with
from janus_pt.model.meta import full_shapes
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import file_hash

ADAPTER_FORMAT = "janus_pt adapter"
ADAPTER_VERSION = 1
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


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


def save_adapter(
    directory: str | Path,
    state: Mapping[str, Tensor],
    adapter: AdapterConfig,
    base: str | Path,
    mlflow_run_id: str | None = None,
) -> None:
    """Write a folder of adapters; it appears whole or not at all.

    Args:
        directory: if it exists it must be empty or hold adapters.
        state: all that is trained with `adapter`, whole tensors.
        base: folder of the exported model they were trained on.
        mlflow_run_id: the run that trained them.

    Raises:
        UserError: `directory` holds something else, or `base` is no exported model.
    """

    def fill(folder: Path) -> None:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()}, folder / ADAPTER_WEIGHTS
        )
        content = AdapterExportConfig(
            base_model_name_or_path=str(Path(base).resolve()),
            base_model_sha256=read_export_config(base).model_sha256,
            adapter=adapter,
            adapter_sha256=file_hash(folder / ADAPTER_WEIGHTS),
            mlflow_run_id=mlflow_run_id,
        )
        text = json.dumps(content.model_dump(mode="json"), indent=1, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")

    write_folder(Path(directory), {ADAPTER_WEIGHTS, ADAPTER_CONFIG}, fill)


def load_pretrained(directory: str | Path, merge: bool = True) -> Export:
    """Read the folder of an exported model, or of adapters together with their base.

    LoRA's matrices are added to the weights they belong to, unless `merge` is unset; bottlenecks stay what they are.

    Raises:
        UserError: as `load_export` does; the base is not there, or is another one.
    """
    folder = Path(directory)
    if not (folder / ADAPTER_CONFIG).is_file():
        return load_export(folder)
    config = read_description(folder / ADAPTER_CONFIG, AdapterExportConfig)
    base_folder, adapter = folder / config.base_model_name_or_path, config.adapter
    if not (base_folder / CONFIG).is_file():
        raise UserError(
            f"{folder}: its base model is not in {base_folder}; put it there, or correct base_model_name_or_path in "
            f"{ADAPTER_CONFIG}"
        )
    if read_export_config(base_folder).model_sha256 != config.base_model_sha256:
        raise UserError(
            f"{folder}: was trained on another model than that in {base_folder}; give it its own base"
        )
    base = load_export(base_folder)
    dtype = base.state["embed_tokens.weight"].dtype
    state = {name: tensor.to(dtype) for name, tensor in _read_weights(folder, config, base).items()}
    if merge and adapter.kind == "lora":
        whole = dict(merged(base.state.items(), state, adapter))
        return replace(base, state=whole, mlflow_run_id=config.mlflow_run_id)
    return replace(
        base, state={**base.state, **state}, adapter=adapter, mlflow_run_id=config.mlflow_run_id
    )


def _read_weights(folder: Path, config: AdapterExportConfig, base: Export) -> dict[str, Tensor]:
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: no adapters here, {ADAPTER_WEIGHTS} is missing")
    shapes = full_shapes(base.config, config.adapter)
    expected = {
        name: tuple(shape) for name, shape in shapes.items() if trained_with(config.adapter, name)
    }
    if dict(stored_shapes(path)) != expected:
        raise UserError(
            f"{path}: its tensors are not those of the adapters in {ADAPTER_CONFIG}; copy both again"
        )
    if file_hash(path) != config.adapter_sha256:
        raise UserError(
            f"{path}: damaged, its sha256 is not the one in {ADAPTER_CONFIG}; copy the folder again"
        )
    return load_file(path)
