"""Convert an exported model into a folder that transformers loads without our code.

  janus-pt convert to-huggingface runs/finetune/export --output model_hf

It is a BART, mBART, Marian or M2M-100, whichever computes the model; what none of them computes is
refused by the name of its key. The length head stays behind: they decode left to right only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from janus_pt.config.origin import CARD
from janus_pt.convert.huggingface import CONFIG
from janus_pt.convert.huggingface_files import SAFETENSORS
from janus_pt.convert.huggingface_generation import GENERATION_CONFIG
from janus_pt.convert.huggingface_out import (
    generation_config,
    huggingface_config,
    huggingface_shapes,
    huggingface_weights,
    model_type_of,
    unsupported,
)
from janus_pt.convert.huggingface_tokenizer_out import write_huggingface_tokenizers
from janus_pt.export.adapters import load_pretrained
from janus_pt.export.card import model_card
from janus_pt.export.stream import write_tensors
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import staged_new_folder

METADATA = {"format": "pt"}
"""Without it transformers refuses the file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `to-huggingface`."""
    parser.add_argument("model", type=Path, help="an exported model, or a LoRA adapter: merged")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")


def run(args: argparse.Namespace) -> None:
    """Write the folder, and name it."""
    has_tokenizer = export_to_huggingface(args.model, args.output)
    print(args.output)
    if not has_tokenizer:
        print("its tokenizer came from another folder: copy that folder's tokenizer files here")


def export_to_huggingface(model: str | Path, output: str | Path) -> bool:
    """Write the model in folder `model` as BART, mBART, Marian or M2M-100, with its tokenizer.

    The length head stays behind: their classes have none.

    Returns:
        Whether the folder has a tokenizer; False if it is one that only its original files hold.

    Raises:
        UserError: `model` is no export, or none of their classes computes it; or `output` is not
            empty.
    """
    export = load_pretrained(model)
    if export.adapter is not None:
        raise UserError(
            f"{model}: adapter.kind: a bottleneck cannot be merged, and their classes have none; "
            'only adapters of kind "lora" can be converted'
        )
    config, state = export.config, export.state
    for key, reason in unsupported(config):
        raise UserError(f"{model}: model.{key}: {reason}")
    dtype = state["embed_tokens.weight"].dtype
    shapes = huggingface_shapes(config, {name: tensor.shape for name, tensor in state.items()})
    with staged_new_folder(Path(output)) as folder:
        model_type = str(model_type_of(config))
        written = write_huggingface_tokenizers(folder, export.tokenizers, config, model_type)
        _write_json(folder / CONFIG, huggingface_config(config, dtype))
        _write_json(folder / GENERATION_CONFIG, generation_config(config))
        card = model_card(config, export.origin, library="transformers")
        (folder / CARD).write_text(card, encoding="utf-8")
        weights = huggingface_weights(config, state)
        write_tensors(folder / SAFETENSORS, weights, shapes, METADATA)
    return written


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
