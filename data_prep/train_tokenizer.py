"""Train the SentencePiece tokenizer of a model.

    python data_prep/train_tokenizer.py --input books.jsonl.xz --vocab-size 8000 --output tokenizer.model

Inputs are .jsonl (one document a line, its text in --field) or any other text, each also .gz, .xz or .zst. Special
pieces: pad 0, bos 1, eos 2, unk 3, `<mask>` 4. Text is left as it is (identity normalisation) and characters without a
piece are spelt in bytes, so nothing is lost. The same input and arguments give the same model.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from tqdm import tqdm

from data_prep.blocks import cut_pieces, split_sentences
from data_prep.inputs import read_texts
from janus_pt.tokenizer import MASK_PIECE, Tokenizer
from janus_pt.utils.errors import UserError, entry_point

MAX_SENTENCE_CHARACTERS = 1000
"""Longer sentences are cut: SentencePiece passes over what is longer than its limit."""
SEED = 1

SETTINGS: dict[str, Any] = {
    **dict(
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, control_symbols=[MASK_PIECE], byte_fallback=True
    ),
    **dict(
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
    ),
    **dict(
        character_coverage=0.9995, max_sentence_length=4 * MAX_SENTENCE_CHARACTERS, minloglevel=2
    ),
    # The number of threads takes part in the result: it is SentencePiece's default, not the number of cores.
    "num_threads": 16,
}
ModelType = Literal["unigram", "bpe"]


def train(
    sentences: Iterable[str], vocab_size: int, model_type: ModelType = "unigram"
) -> Tokenizer:
    """Train on sentences, all of which are held in memory (about 20 bytes a byte of text for unigram).

    Raises:
        UserError: there is no text, or `vocab_size` does not suit it.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            **SETTINGS,
        )
    except RuntimeError as error:
        raise UserError(_translated(str(error), vocab_size)) from None
    return Tokenizer(model.getvalue())


def sample_sentences(paths: Sequence[str], field: str, sample_bytes: int) -> Iterator[str]:
    """Yield the sentences of the files, or an even random sample of about `sample_bytes` UTF-8 bytes if they have more.

    The files are read twice, first to learn how much text there is; the sample is the same every time.
    """
    total = sum(len(text.encode()) for text in _shown(paths, field, "measuring"))
    share = sample_bytes / max(total, 1)
    choice = random.Random(SEED)
    for text in _shown(paths, field, "sampling"):
        for sentence in split_sentences(text):
            if choice.random() < share:
                for line in sentence.strip().split("\n"):
                    yield from cut_pieces(line, MAX_SENTENCE_CHARACTERS)


def _shown(paths: Sequence[str], field: str, action: str) -> Iterator[str]:
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(desc=action, unit="B", unit_scale=True, mininterval=interval) as bar:
        for text in read_texts(paths, field):
            yield text
            bar.update(len(text))


def _translated(message: str, vocab_size: int) -> str:
    """SentencePiece's complaint as something a user can act on."""
    if found := re.search(
        r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", message
    ):
        return f"--vocab-size {vocab_size}: this text gives at most {found[1]} pieces; ask for fewer or give more text"
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"--vocab-size {vocab_size}: special pieces, bytes and characters alone take {found[1]}; ask for more"
    if "!sentences_.empty()" in message:
        return "no text to train on"
    return f"SentencePiece could not train: {message}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. `UserError` for values out of range or an output folder that is not there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="the model file to write"
    )
    parser.add_argument("--vocab-size", type=int, default=32000, help="(default: %(default)s)")
    parser.add_argument(
        "--model-type", choices=["unigram", "bpe"], default="unigram", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--field", default="text", help="field of .jsonl documents (default: %(default)s)"
    )
    parser.add_argument(
        "--sample-bytes",
        type=int,
        default=20_000_000,
        help="text to train on, drawn evenly (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    for name in ("vocab_size", "sample_bytes"):
        if getattr(given, name) < 1:
            raise UserError(
                f"--{name.replace('_', '-')} must be at least 1, not {getattr(given, name)}"
            )
    if not given.output.parent.is_dir():
        raise UserError(f"--output {given.output}: there is no folder {given.output.parent}")
    return given


def main() -> None:
    """Train what the command line asks for; the model file appears whole or not at all."""
    given = parse_arguments()
    sentences = sample_sentences(given.input, given.field, given.sample_bytes)
    tokenizer = train(sentences, given.vocab_size, given.model_type)
    part = given.output.with_name(given.output.name + ".tmp")
    tokenizer.save(part)
    os.replace(part, given.output)
    print(f"{given.output}: {tokenizer.vocab_size:,} pieces, {given.model_type}")


if __name__ == "__main__":
    entry_point(main)
