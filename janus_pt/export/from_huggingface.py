"""Convert a BART, mBART, Marian or M2M-100 model of Hugging Face into an exported model.

  hf download facebook/bart-base --local-dir bart
  janus-pt convert huggingface --model bart --output mine
  janus-pt generate --model mine --mode ar --num-beams 4 < in.txt

It decodes left to right at once, as the original does. To decode all at once it must be trained:
janus-pt finetune --set run.init_from=mine, on a corpus that was built with its tokenizer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from janus_pt.config.exported import read_export_config
from janus_pt.config.origin import Origin, read_license
from janus_pt.convert.huggingface import CONFIG, check_keys, vocab_sizes
from janus_pt.convert.huggingface_files import read_json
from janus_pt.convert.huggingface_frames import Languages
from janus_pt.convert.huggingface_model import HuggingFaceModel, read_huggingface
from janus_pt.convert.huggingface_tokenizer import from_huggingface
from janus_pt.convert.tokenizer_size import fitted
from janus_pt.export.folder import save_export
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError

MOST_FILLERS = 128
"""Rows that a model may have more than its tokenizer has tokens, and one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `huggingface`."""
    parser.add_argument(
        "--model", type=Path, required=True, help="the model's folder, as save_pretrained writes it"
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    for side, key in (("source", "src_lang"), ("target", "tgt_lang")):
        parser.add_argument(
            f"--{side}-language",
            metavar="TOKEN",
            help=f"multilingual models: the {side}'s language, as in de_DE (default: what the "
            f"folder says, as {key} of its tokenizer)",
        )


def run(args: argparse.Namespace) -> None:
    """Write the folder, and say what was not in the original and how to decode as it did."""
    languages = Languages(args.source_language, args.target_language)
    model = convert_huggingface(args.model, args.output, languages)
    print(args.output)
    print("the length head is new: train it, with JANUS or any objective of P_NAR, before nar")
    print(f"build corpora for it with {_tokenizer_flags(args.output)}")
    if model.config.mask_token_id == model.config.unk_token_id:
        print("the model has no mask symbol: <unk> serves as one")
    print(f"decode as the original does: {_command(args.output, model.options)}")


def convert_huggingface(
    model: str | Path, output: str | Path, languages: Languages | None = None
) -> HuggingFaceModel:
    """Write the model in the folder `model` as an export, and return what was read.

    One tensor is in memory at a time, besides pages of the mapped file.

    Raises:
        UserError: the folder is incomplete or damaged, of another architecture, has a setting that
            has no counterpart here, or its tokenizer does not fit; or `output` holds something else.
    """
    folder = Path(model)
    if not folder.is_dir():
        advice = "to download a model use `hf download NAME --local-dir FOLDER`"
        raise UserError(f"{folder}: no such folder; {advice}")
    tokenizers = _tokenizers(folder)
    target = tokenizers[0]
    read = read_huggingface(folder, target, target.token_id, languages or Languages())
    save_export(output, read.weights(), read.config, tokenizers, origin=_origin(folder))
    return read


def _origin(folder: Path) -> Origin:
    """What the folder says of the model; it has been trained left to right."""
    name = read_json(folder / CONFIG).get("_name_or_path") or folder.resolve().name
    return Origin(objective="ar", base_model=str(name), license=read_license(folder))


def _tokenizers(folder: Path) -> list[Tokenizer]:
    """The tokenizers with as many tokens as the model has rows."""
    values = read_json(folder / CONFIG)
    check_keys(values, str(folder / CONFIG))
    target_size, source_size = vocab_sizes(values)
    sizes = (target_size, source_size or target_size)
    fitting = []
    for tokenizer, size in zip(from_huggingface(folder), sizes, strict=False):
        # Tables are padded to such multiples; a larger difference is another model's.
        if not isinstance(size, int) or size - tokenizer.vocab_size >= MOST_FILLERS:
            raise UserError(
                f"{tokenizer.origin}: has {tokenizer.vocab_size} tokens, but {CONFIG} a vocabulary "
                f"of {size}; it belongs to another model"
            )
        fitting.append(fitted(tokenizer, size))
    return fitting


def _tokenizer_flags(output: Path) -> str:
    """The flags of `janus-pt prep` that name the tokenizers in the folder."""
    listed = read_export_config(output).tokenizers
    flags = ("--tokenizer", "--source-tokenizer")
    return " ".join(f"{flag} {output / name}" for flag, name in zip(flags, listed, strict=False))


def _command(output: Path, options: dict[str, Any]) -> str:
    words = [f"janus-pt generate --model {output} --mode ar"]
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        words.append(flag if value is True else f"{flag} {value}")
    return " ".join(words)
