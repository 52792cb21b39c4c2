#!/usr/bin/env bash
# CTranslate2's converter asks a BART configuration for normalize_before, which transformers' BartConfig does
# not have: a freshly made BART cannot be converted until config.json says false.
. "$(dirname "$0")/common.sh"
finding ctranslate2==4.8.5 transformers==5.24.0 tokenizers==0.23.3 torch==2.13.0 <<'PYTHON'
import json
from pathlib import Path

from ctranslate2.converters import TransformersConverter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer

from tiny_transformers import SIZES

special = ["<s>", "<pad>", "</s>", "<unk>"]
tokens = [*special, *sorted(ByteLevel.alphabet()), "<mask>"]
vocabulary = {token: number for number, token in enumerate(tokens)}
BartTokenizer(vocab=vocabulary, merges=[]).save_pretrained("bart")
model = BartForConditionalGeneration(BartConfig(vocab_size=len(tokens), **SIZES))
model.save_pretrained("bart")

message = ""
try:
    TransformersConverter("bart").convert("converted")
except AttributeError as error:
    message = str(error)
print("as transformers wrote it:", message)

file = Path("bart/config.json")
values = json.loads(file.read_text())
file.write_text(json.dumps({**values, "normalize_before": False, "normalize_embedding": True}))
TransformersConverter("bart").convert("converted")
print("with the keys:", sorted(path.name for path in Path("converted").iterdir()))
assert "normalize_before" in message
PYTHON
