#!/usr/bin/env bash
# A unigram model of SentencePiece that keeps spaces cuts a long run of spaces otherwise once transformers has
# loaded it: of two segmentations with the same score each library takes another one.
. "$(dirname "$0")/common.sh"
finding sentencepiece==0.2.3 tokenizers==0.23.3 transformers==5.24.0 protobuf==7.36.2 <<'PYTHON'
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizerFast

lines = [" " * (i % 9) + "x" + " " * (i % 13) + "y" for i in range(500)]
Path("text").write_text("\n".join(lines))
Path("model").mkdir()
sentencepiece.SentencePieceTrainer.train(
    input="text",
    model_prefix="model/tokenizer",
    vocab_size=20,
    hard_vocab_limit=False,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    minloglevel=2,
)
ours = sentencepiece.SentencePieceProcessor(model_file="model/tokenizer.model")
theirs = PreTrainedTokenizerFast.from_pretrained("model")


def score(pieces):
    return sum(ours.get_score(ours.piece_to_id(piece)) for piece in pieces)


def lengths(pieces):
    return [len(piece) for piece in pieces]


different = []
for spaces in range(40):
    text = "x" + " " * spaces + "y"
    a, b = ours.encode(text, out_type=str), theirs.tokenize(text)
    assert "".join(a) == "".join(b)
    assert abs(score(a) - score(b)) < 1e-4
    if a != b:
        different.append((spaces, lengths(a), lengths(b)))
print(
    f"{len(different)} of 40 runs of spaces are cut otherwise, all with the same score; the first:"
)
print("{} spaces: lengths of pieces {} and {}".format(*different[0]))
assert len(different) > 5
PYTHON
