"""Train the SentencePiece tokenizer of a model.

    janus-pt prep train-tokenizer --input books.jsonl.xz --vocab-size 8000 --output tokenizer.model

Inputs are .jsonl (one document a line, its text in --field) or any other text, each also .gz, .xz or .zst. Special
pieces: pad 0, bos 1, eos 2, unk 3, `<mask>` 4. Text is left as it is (identity normalisation) and characters without a
piece are spelt in bytes, so nothing is lost. The same input and arguments give the same model.

`--model-type char` and `word` make every character or every word between spaces a piece, for texts of a closed
vocabulary: letters, phonemes. They have no bytes; characters or words that the input does not have become unk.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from tqdm import tqdm

from janus_pt.data_prep.blocks import cut_pieces, split_sentences
from janus_pt.data_prep.inputs import read_texts
from janus_pt.tokenizer import MASK, Tokenizer, read_tokenizer
from janus_pt.utils.errors import UserError
from janus_pt.utils.files import write_bytes_atomically

MAX_SENTENCE_CHARACTERS = 1000
"""Longer sentences are cut: SentencePiece ignores sentences above its limit."""
SEED = 1

SETTINGS: dict[str, Any] = {
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    # A control symbol: no text is ever encoded as it.
    "control_symbols": [MASK],
    # Characters without a piece are spelt in bytes, and no character is changed: decoding gives the text back.
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.9995,
    # In bytes, of which UTF-8 takes up to four for a character.
    "max_sentence_length": 4 * MAX_SENTENCE_CHARACTERS,
    # Errors only.
    "minloglevel": 2,
    # The result depends on the number of threads: it is SentencePiece's default, not the number of cores.
    "num_threads": 16,
}
WHOLE_UNITS: dict[str, Any] = {
    # SentencePiece spells nothing in bytes for these types.
    "byte_fallback": False,
    # A text has as many characters or words as it has: `vocab_size` is the most there may be.
    "hard_vocab_limit": False,
    "character_coverage": 1.0,
}
"""What differs from `SETTINGS` where characters or words are the pieces."""
ModelType = Literal["unigram", "bpe", "char", "word"]


def train(
    sentences: Iterable[str], vocab_size: int, model_type: ModelType = "unigram"
) -> Tokenizer:
    """A tokenizer trained on sentences, all of which are held in memory (unigram: about 20 bytes a byte of text).

    Raises:
        UserError: there is no text, or `vocab_size` does not suit it.
    """
    settings = SETTINGS
    if model_type in ("char", "word"):
        settings = {**SETTINGS, **WHOLE_UNITS}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            **settings,
        )
    except RuntimeError as error:
        raise UserError(_translated(str(error), vocab_size)) from None
    return read_tokenizer(model.getvalue())


def sample_sentences(paths: Sequence[str], field: str, sample_bytes: int) -> Iterator[str]:
    """Yield the sentences of the files, or an even random sample of about `sample_bytes` UTF-8 bytes if they have more.

    The files are read twice, first to learn how much text there is; the sample is the same every time.
    """
    total = sum(len(text.encode()) for text in _read_with_progress(paths, field, "measuring"))
    share = sample_bytes / max(total, 1)
    rng = random.Random(SEED)
    for text in _read_with_progress(paths, field, "sampling"):
        for sentence in split_sentences(text):
            # A number is drawn for every sentence, so that the choice of one does not depend on the share.
            if rng.random() >= share:
                continue
            # SentencePiece reads a line at a time.
            for line in sentence.strip().split("\n"):
                yield from cut_pieces(line, MAX_SENTENCE_CHARACTERS)


def _read_with_progress(paths: Sequence[str], field: str, action: str) -> Iterator[str]:
    # In a log file, a line every ten seconds is enough.
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(desc=action, unit="B", unit_scale=True, mininterval=interval) as bar:
        for text in read_texts(paths, field):
            yield text
            bar.update(len(text))


def _translated(message: str, vocab_size: int) -> str:
    """SentencePiece's error as a message on which a user can act."""
    too_large = re.search(
        r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", message
    )
    if too_large:
        most = too_large[1]
        return f"--vocab-size {vocab_size}: this text gives at most {most} pieces; ask for fewer or give more text"
    too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if too_small:
        least = too_small[1]
        return f"--vocab-size {vocab_size}: special pieces, bytes and characters alone take {least}; ask for more"
    if "!sentences_.empty()" in message:
        return "no text to train on"
    return f"SentencePiece could not train: {message}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prep train-tokenizer`."""
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="text, best the text of the corpus: .jsonl (a document a line) or any other text file",
    )
    add("--output", required=True, type=Path, metavar="FILE", help="model file to write")
    add(
        "--vocab-size",
        type=int,
        default=32000,
        help="pieces, special ones and bytes included; model.vocab_size (default: %(default)s)",
    )
    add(
        "--model-type",
        choices=["unigram", "bpe", "char", "word"],
        default="unigram",
        help="SentencePiece's algorithm; char, word: of these at most --vocab-size (default: %(default)s)",
    )
    add(
        "--field",
        default="text",
        help="field of .jsonl documents that holds the text (default: %(default)s)",
    )
    add(
        "--sample-bytes",
        type=int,
        default=20_000_000,
        help="bytes of text to train on; of a longer text an even sample (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Train the tokenizer.

    Raises:
        UserError: a value is out of range, the output's folder is not there, or the text does not
            suit.
    """
    for name in ("vocab_size", "sample_bytes"):
        value = getattr(args, name)
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    # Before the training, which may take an hour.
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {args.output.parent}")
    sentences = sample_sentences(args.input, args.field, args.sample_bytes)
    tokenizer = train(sentences, args.vocab_size, args.model_type)
    write_bytes_atomically(args.output, tokenizer.content)
    print(f"{args.output}: {tokenizer.vocab_size:,} pieces, {args.model_type}")
