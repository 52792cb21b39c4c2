"""Convert an exported model into a folder for CTranslate2, with its tokenizers.

  janus-pt convert ctranslate2 runs/finetune/export --output model_ct2 --quantization int8

What must be given with every text is printed. Needs the extra: pip install 'janus_pt[ctranslate2]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

from janus_pt.convert.ctranslate2 import (
    QUANTIZATIONS,
    given_with_texts,
    unsupported,
    vocabulary,
    write_ctranslate2,
)
from janus_pt.export.adapters import load_pretrained
from janus_pt.tokenizer import save_tokenizers
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import staged_new_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `ctranslate2`."""
    parser.add_argument("model", type=Path, help="an exported model, or a LoRA adapter: merged")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS, help="default: weights keep their type"
    )


def run(args: argparse.Namespace) -> None:
    """Write the folder, name it, and say what its users must give with their texts."""
    given = export_to_ctranslate2(args.model, args.output, args.quantization)
    print(args.output)
    for name, tokens in given.items():
        print(f"give with every text: {name} {tokens}")


def export_to_ctranslate2(
    model: str | Path, output: str | Path, quantization: str | None = None
) -> dict[str, list[str]]:
    """Write the model in folder `model` for CTranslate2; its tokenizers are put beside it.

    Returns:
        `given_with_texts`.

    Raises:
        UserError: `model` is no export or cannot be converted, or `output` is not empty.
    """
    export = load_pretrained(model)
    if export.adapter is not None:
        raise UserError(
            f"{model}: adapter.kind: a bottleneck cannot be merged, and CTranslate2 has none; only "
            'adapters of kind "lora" can be converted'
        )
    for key, reason in unsupported(export.config):
        raise UserError(f"{model}: model.{key}: {reason}")
    vocabularies = [vocabulary(tokenizer) for tokenizer in export.tokenizers]
    with staged_new_folder(Path(output)) as folder:
        write_ctranslate2(folder, export.config, export.state, vocabularies, quantization)
        save_tokenizers(folder, export.tokenizers)
    return given_with_texts(export.config, vocabularies)
