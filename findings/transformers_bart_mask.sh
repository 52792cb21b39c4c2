#!/usr/bin/env bash
# transformers 5 loads BART's tokenizer from vocab.json and merges.txt with a <mask> that leaves the space
# before it standing: one token more than the model was pretrained with.
. "$(dirname "$0")/common.sh"
finding transformers==5.24.0 tokenizers==0.23.3 <<'PYTHON'
import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AddedToken, BartTokenizer

special = ["<s>", "<pad>", "</s>", "<unk>"]
tokens = [*special, *sorted(ByteLevel.alphabet()), "Ġb", "<mask>"]
Path("bart").mkdir()
Path("bart/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
Path("bart/merges.txt").write_text("#version: 0.2\nĠ b\n")

plain = BartTokenizer.from_pretrained("bart")
mask = AddedToken("<mask>", lstrip=True)
told = BartTokenizer.from_pretrained("bart", mask_token=mask)
cut = {name: t.tokenize("a <mask> b") for name, t in (("plain", plain), ("told", told))}
print("files alone:         ", cut["plain"])
print("with AddedToken:     ", cut["told"])
assert cut["plain"] == ["a", "Ġ", "<mask>", "Ġb"]
assert cut["told"] == ["a", " <mask>", "Ġb"]
PYTHON
