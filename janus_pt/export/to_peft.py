"""Convert a LoRA adapter into a folder that the library peft loads.

janus-pt convert to-huggingface model --output model_hf
janus-pt convert peft runs/lora/adapter --base model_hf --output lora_peft
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import save_file

from janus_pt.config.exported import ADAPTER_CONFIG
from janus_pt.config.schema import AdapterConfig
from janus_pt.convert.huggingface_out import unsupported
from janus_pt.convert.peft import (
    LENGTH_HEAD,
    LENGTH_HEAD_FILE,
    adapted_layers,
    peft_config,
    peft_names,
)
from janus_pt.export.adapters import ADAPTER_WEIGHTS, load_adapter
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import staged_new_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `peft`."""
    parser.add_argument("adapter", type=Path, help="a folder of LoRA adapters")
    parser.add_argument(
        "--base", required=True, help="its base in Hugging Face's form: a folder or a name"
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")


def run(args: argparse.Namespace) -> None:
    """Write the folder, and name it."""
    export_to_peft(args.adapter, args.base, args.output)
    print(args.output)


def export_to_peft(adapter: str | Path, base: str, output: str | Path) -> None:
    """Write the adapter in folder `adapter` for peft.

    A trained length head, which peft has no place for, is put in a file beside it.

    Args:
        base: what peft loads as the base: a folder or a name, in Hugging Face's form.

    Raises:
        UserError: `adapter` cannot be expressed, with its key, or `output` is not empty.
    """
    description, base_config, state = load_adapter(adapter)
    _check(str(adapter), description.adapter)
    for key, reason in unsupported(base_config):
        raise UserError(f"{adapter}: its base's model.{key}: {reason}")
    head = f"{LENGTH_HEAD}.weight"
    heads = {head: state.pop(head)} if head in state else {}
    config = peft_config(description.adapter, adapted_layers(state), base)
    with staged_new_folder(Path(output)) as folder:
        save_file(peft_names(state), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        if heads:
            save_file(heads, folder / LENGTH_HEAD_FILE)
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def _check(origin: str, adapter: AdapterConfig) -> None:
    """Refuse what peft on Hugging Face's form has no place for."""
    if adapter.kind != "lora":
        raise UserError(f'{origin}: adapter.kind: peft has no "{adapter.kind}", only "lora"')
    others = [name for name in adapter.modules_to_save if name != LENGTH_HEAD]
    if others:
        reason = f"{', '.join(others)}: only {LENGTH_HEAD} can be taken along"
        raise UserError(f"{origin}: adapter.modules_to_save: {reason}; train without them")
