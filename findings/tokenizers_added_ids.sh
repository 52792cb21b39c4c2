#!/usr/bin/env bash
# Hugging Face's tokenizers ignore the ids that a tokenizer.json gives its added tokens: each gets the next
# free number, without a message, and saving writes that number.
. "$(dirname "$0")/common.sh"
finding tokenizers==0.23.3 <<'PYTHON'
import json

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

tokenizer = Tokenizer(BPE(vocab={"a": 0, "b": 1, "c": 2}, merges=[]))
tokenizer.add_special_tokens([AddedToken("<mask>")])
content = json.loads(tokenizer.to_str())
(added,) = content["added_tokens"]
# Where a model's table was padded to a round size, and its mask came behind the padding.
added["id"] = 100
loaded = Tokenizer.from_str(json.dumps(content))
saved = json.loads(loaded.to_str())["added_tokens"][0]["id"]
print("in the file:", added["id"])
print("after loading:", loaded.token_to_id("<mask>"), " token 100:", loaded.id_to_token(100))
print("after saving:", saved)
assert loaded.token_to_id("<mask>") == saved == 3
assert loaded.id_to_token(100) is None
PYTHON
