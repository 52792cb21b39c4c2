"""Convert a LoRA adapter of the library peft into one of ours, on an exported base.

janus-pt convert from-peft lora_peft --base model --output lora
janus-pt generate --model lora --mode ar < in.txt
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from janus_pt.config.exported import ADAPTER_CONFIG, read_export_config
from janus_pt.config.origin import base_origin
from janus_pt.config.schema import AdapterConfig, ModelConfig
from janus_pt.convert.peft import (
    LENGTH_HEAD_FILE,
    adapted_layers,
    adapter_of,
    our_names,
    unsupported,
)
from janus_pt.export.adapters import ADAPTER_WEIGHTS, save_adapter, trained_shapes
from janus_pt.export.checks import stored_shapes
from janus_pt.model.adapters import linear_layers
from janus_pt.model.meta import build_on_meta
from janus_pt.utils.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `from-peft`."""
    parser.add_argument("adapter", type=Path, help="a folder that peft wrote")
    parser.add_argument("--base", type=Path, required=True, help="the exported model it belongs to")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")


def run(args: argparse.Namespace) -> None:
    """Write the folder, and name it."""
    import_from_peft(args.adapter, args.base, args.output)
    print(args.output)


def import_from_peft(adapter: str | Path, base: str | Path, output: str | Path) -> None:
    """Write peft's adapter in folder `adapter` as ours, on the exported model in folder `base`.

    Raises:
        UserError: `adapter` holds no adapter, has keys or tensors that ours cannot express (they
            are named), or does not fit `base`; or `output` holds something else.
    """
    folder = Path(adapter)
    config = _read_config(folder / ADAPTER_CONFIG)
    for key, reason in unsupported(config):
        raise UserError(f"{folder / ADAPTER_CONFIG}: {key}: {reason}")
    base_config = read_export_config(base).model
    state = _read_state(folder)
    _check_layers(folder / ADAPTER_WEIGHTS, adapted_layers(state), base_config)
    try:
        ours = adapter_of(config, state, base_config)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        value = f"{problem['loc'][0]}: {problem['msg']}"
        raise UserError(f"{folder / ADAPTER_CONFIG}: {value}") from None
    _check_tensors(folder / ADAPTER_WEIGHTS, state, ours, base_config)
    save_adapter(output, state, ours, base, origin=base_origin(base))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: no peft adapter here, {path.name} is missing")
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); save the adapter again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; this is no peft adapter")
    return content


def _read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors under our names."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        reason = f"no peft adapter here, {path.name} is missing"
        raise UserError(f"{folder}: {reason}; a .bin is a pickle: save it as safetensors")
    state = our_names(_load(path))
    length_head = folder / LENGTH_HEAD_FILE
    return state | (_load(length_head) if length_head.is_file() else {})


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; `UserError` says what is wrong with a damaged one."""
    stored_shapes(path)
    return load_file(path)


def _check_layers(path: Path, layers: Set[str], base: ModelConfig) -> None:
    """Refuse, by name, an adapter on something that is no linear layer of the base."""
    if not layers:
        raise UserError(f"{path}: no LoRA tensors in it")
    unknown = sorted(layers - linear_layers(build_on_meta(base)).keys())
    if unknown:
        raise UserError(f"{path}: the base has no linear layer {unknown[0]} to adapt")


def _check_tensors(
    path: Path, state: dict[str, Tensor], adapter: AdapterConfig, base: ModelConfig
) -> None:
    """Refuse, by name, a tensor that has no place on the base, that is missing or misshapen."""
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = trained_shapes(base, adapter)
    for name in sorted({*stored, *expected}):
        if stored.get(name) != expected.get(name):
            found, wanted = stored.get(name, "missing"), expected.get(name, "absent")
            raise UserError(f"{path}: {name} is {found}, on this base it should be {wanted}")
