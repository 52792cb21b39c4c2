#!/usr/bin/env bash
# transformers 5 loads mBART's tokenizer from its SentencePiece model without the model's normaliser, which
# the classes of mBART-50 and NLLB keep: other tokens than in pretraining for ligatures and wide letters.
. "$(dirname "$0")/common.sh"
finding transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2 <<'PYTHON'
from pathlib import Path

import sentencepiece
from transformers import MBart50Tokenizer, MBartTokenizer, NllbTokenizer

Path("text").write_text("\n".join(["a fine film at the office", "the film of a final"] * 30))
Path("model").mkdir()
sentencepiece.SentencePieceTrainer.train(
    input="text",
    model_prefix="model/sentencepiece.bpe",
    vocab_size=60,
    hard_vocab_limit=False,
    normalization_rule_name="nmt_nfkc",
    minloglevel=2,
)
model = sentencepiece.SentencePieceProcessor(model_file="model/sentencepiece.bpe.model")
TEXT = "\uff46ilm"
expected = model.encode(TEXT, out_type=str)
print("SentencePiece:", ascii(expected))
found = {}
for kind in (MBartTokenizer, MBart50Tokenizer, NllbTokenizer):
    found[kind] = kind.from_pretrained("model").tokenize(TEXT)
    print(f"{kind.__name__}:", ascii(found[kind]))
assert found[MBartTokenizer] != expected
assert found[MBart50Tokenizer] == found[NllbTokenizer] == expected
PYTHON
