"""Convert a checkpoint of the authors' fairseq code into an exported model.

  janus-pt convert fairseq --checkpoint model.pt --dictionary dict.txt --codes codes --output model

The file is a pickle: one that holds anything but tensors and options is refused, and not run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from janus_pt.config.origin import Origin
from janus_pt.convert.fairseq import convert_fairseq, unsupported
from janus_pt.convert.fairseq_file import read_fairseq
from janus_pt.convert.fairseq_tokenizer import from_fairseq, read_dictionary
from janus_pt.export.folder import save_export
from janus_pt.tokenizer import Tokenizer
from janus_pt.utils.errors import UserError


@dataclass(frozen=True)
class Dictionary:
    """Files of a side's tokens: see `convert/fairseq_tokenizer.py`."""

    dictionary: Path
    codes: Path
    encoder_json: Path | None = None

    def tokenizer(self, rows: int) -> Tokenizer:
        """The tokenizer of an embedding with `rows` rows."""
        # Denoising has a mask behind the dictionary's last token, which the file does not have.
        has_mask = rows == len(read_dictionary(self.dictionary)) + 1
        return from_fairseq(self.dictionary, self.codes, self.encoder_json, has_mask)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fairseq`."""
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="a file of fairseq, as checkpoint_best.pt")
    add("--dictionary", type=Path, required=True, help="dict.txt of the targets, or of both sides")
    add("--codes", type=Path, required=True, help="BPE codes or the model that cut the texts")
    add("--source-dictionary", type=Path, help="of the sources, where they have their own")
    add("--source-codes", type=Path, help="of the sources, where they have their own")
    add("--encoder-json", type=Path, help="GPT-2's encoder.json, with its vocab.bpe as --codes")
    add("--ignore", nargs="+", default=[], metavar="KEY", help="options not to refuse")
    add("--output", type=Path, required=True, help="the folder to write")


def run(args: argparse.Namespace) -> None:
    """Write the exported model, and name its folder."""
    dictionaries = [Dictionary(args.dictionary, args.codes, args.encoder_json)]
    if args.source_dictionary or args.source_codes:
        dictionary, codes = (
            args.source_dictionary or args.dictionary,
            args.source_codes or args.codes,
        )
        dictionaries.append(Dictionary(dictionary, codes, args.encoder_json))
    import_from_fairseq(args.checkpoint, dictionaries, args.output, args.ignore)
    print(args.output)


def import_from_fairseq(
    path: Path, dictionaries: list[Dictionary], output: Path, ignored: Iterable[str] = ()
) -> None:
    """Write the model in the checkpoint `path` as an export.

    Args:
        dictionaries: the target's, then the source's if it has its own.
        ignored: options that are not looked at.

    Raises:
        UserError: the checkpoint holds what is not loaded, or cannot be converted; or the
            dictionaries do not fit it.
    """
    checkpoint = read_fairseq(path)
    kept = {k: v for k, v in checkpoint.settings.items() if k not in set(ignored)}
    checkpoint = replace(checkpoint, settings=kept)
    for key, reason in unsupported(kept):
        raise UserError(f"{path}: {key} {reason}")
    config, state = convert_fairseq(checkpoint)
    rows = [config.vocab_size, config.source_vocab_size or config.vocab_size]
    tokenizers = [
        dictionary.tokenizer(count) for dictionary, count in zip(dictionaries, rows, strict=False)
    ]
    save_export(output, state, config, tokenizers, origin=Origin(base_model=path.name))
