#!/usr/bin/env bash
# The normaliser nmt_nfkc of SentencePiece becomes another one in Hugging Face's tokenizers, which read the
# same table: two combining marks become one, jamo stay apart, and ids differ without a message.
. "$(dirname "$0")/common.sh"
finding sentencepiece==0.2.3 tokenizers==0.23.3 protobuf==7.36.2 <<'PYTHON'
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers.normalizers import Precompiled

Path("text").write_text("\n".join(["the cat sat on the mat", "a dog ran"] * 20))
sentencepiece.SentencePieceTrainer.train(
    input="text",
    model_prefix="spm",
    vocab_size=60,
    hard_vocab_limit=False,
    normalization_rule_name="nmt_nfkc",
    add_dummy_prefix=False,
    minloglevel=2,
)
model = sentencepiece_model_pb2.ModelProto.FromString(Path("spm.model").read_bytes())
converted = Precompiled(model.normalizer_spec.precompiled_charsmap)
original = sentencepiece.SentencePieceNormalizer(model_file="spm.model")


def both(text):
    found = original.normalize(text), converted.normalize_str(text)
    print(f"{text!a}: SentencePiece {found[0]!a}, tokenizers {found[1]!a}")
    return found


plain, marks, jamo = both("\uff21"), both("a\u0323\u0302"), both("\u1112\u1161\u11ab")
assert plain[0] == plain[1]
assert marks == ("\u1ead", "\u1ea1")
assert jamo[0] == "\ud55c" and jamo[1] != jamo[0]
PYTHON
