#!/usr/bin/env bash
# SentencePiece's unigram training depends on num_threads: scores differ, and some pieces get other ids, so
# that a corpus cut with one model cannot be read with the other. BPE's training does not.
. "$(dirname "$0")/common.sh"
finding sentencepiece==0.2.3 <<'PYTHON'
import random
from pathlib import Path

import sentencepiece

draw = random.Random(1)
WORDS = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(2000)]
Path("text").write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(3000)))


def pieces(kind, threads):
    sentencepiece.SentencePieceTrainer.train(
        input="text",
        model_prefix="model",
        model_type=kind,
        vocab_size=1500,
        num_threads=threads,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file="model.model")
    return [model.id_to_piece(number) for number in range(len(model))]


def moved(kind):
    one, again, many = pieces(kind, 1), pieces(kind, 1), pieces(kind, 16)
    assert one == again
    count = sum(a != b for a, b in zip(one, many, strict=True))
    print(f"{kind}: {count} of {len(one)} ids are another piece's with 16 threads instead of 1")
    return count


assert moved("unigram") > 0
assert moved("bpe") == 0
PYTHON
